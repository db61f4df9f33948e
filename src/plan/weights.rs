//! Weights that were rewritten for plans.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use tch::{Device, Kind, Tensor};

use crate::model::graph::ValueId;

use super::rules::packed_linear::PackedWeight;
use super::rules::prepacked::{Geometry, LaidOut};

/// What the plans of one model share, so that weights take their memory once however many plans there are.
///
/// All plans that are compiled with one of these must be of the same graph, which must outlive it.
#[derive(Default)]
pub struct Weights {
    /// By the value that a batch normalisation gives: the weight and bias of the convolution that it was folded into.
    folded: HashMap<ValueId, (Tensor, Tensor)>,
    laid_out: Vec<Arc<Mutex<LaidOut>>>,
    packed: Vec<Arc<Mutex<PackedWeight>>>,
    /// Copies in bfloat16, by the tensor's address, shape and strides.
    rounded: HashMap<Layout, Tensor>,
    /// Copies on a device, by the tensor's address, shape and strides.
    placed: HashMap<Placement, Tensor>,
}

type Layout = (usize, Vec<i64>, Vec<i64>);
type Placement = (Layout, Device);

impl Weights {
    /// The folded weight and bias, computed when no plan has needed them before.
    pub(super) fn folded<E>(
        &mut self,
        norm: ValueId,
        fold: impl FnOnce() -> Result<Option<(Tensor, Tensor)>, E>,
    ) -> Result<Option<(Tensor, Tensor)>, E> {
        let (weight, bias) = match self.folded.entry(norm) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => match fold()? {
                Some(folded) => place.insert(folded),
                None => return Ok(None),
            },
        };
        Ok(Some((weight.shallow_clone(), bias.shallow_clone())))
    }

    /// The layouts of a convolution's weight.
    pub(super) fn laid_out(&mut self, weight: &Tensor, geometry: Geometry) -> Arc<Mutex<LaidOut>> {
        shared(&mut self.laid_out, |known| known.are_of(weight, &geometry), || LaidOut::new(weight, geometry))
    }

    /// The layouts of a linear layer's weight.
    pub(super) fn packed(&mut self, weight: &Tensor) -> Arc<Mutex<PackedWeight>> {
        shared(&mut self.packed, |known| known.is_of(weight), || PackedWeight::new(weight))
    }

    /// A constant's copy in bfloat16.
    pub(super) fn rounded(&mut self, tensor: &Tensor) -> Result<Tensor, tch::TchError> {
        Ok(match self.rounded.entry(layout(tensor)) {
            Entry::Occupied(known) => known.get().shallow_clone(),
            Entry::Vacant(place) => place.insert(tensor.f_to_kind(Kind::BFloat16)?).shallow_clone(),
        })
    }

    /// A constant's copy on a device.
    pub(super) fn placed(&mut self, tensor: &Tensor, device: Device) -> Result<Tensor, tch::TchError> {
        let key = (layout(tensor), device);
        if let Some(copy) = self.placed.get(&key) {
            return Ok(copy.shallow_clone());
        }
        let copy = tensor.f_to_device(device)?;
        self.placed.insert(key, copy.shallow_clone());
        Ok(copy)
    }

    /// Forgets layouts that no plan uses any more.
    pub(super) fn forget_unused(&mut self) {
        self.laid_out.retain(|laid_out| Arc::strong_count(laid_out) > 1);
        self.packed.retain(|packed| Arc::strong_count(packed) > 1);
    }
}

fn layout(tensor: &Tensor) -> Layout {
    (tensor.data_ptr() as usize, tensor.size(), tensor.stride())
}

/// The one that is known, or a new one.
fn shared<T>(all: &mut Vec<Arc<Mutex<T>>>, is_it: impl Fn(&T) -> bool, make: impl FnOnce() -> T) -> Arc<Mutex<T>> {
    if let Some(found) = all.iter().find(|one| is_it(&one.lock().unwrap_or_else(PoisonError::into_inner))) {
        return Arc::clone(found);
    }
    let new = Arc::new(Mutex::new(make()));
    all.push(Arc::clone(&new));
    new
}
