//! A plan's constants as tensors on its device.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use tch::{Device, TchError, Tensor};

use crate::model::node::ValueId;

use super::constant::{Constant, Identity};

/// Tensors that are computed from the model's constants or copied to a device, shared by the plans of one model.
#[derive(Default)]
pub(super) struct DeviceTensors {
    tensors: HashMap<(Identity, Device), Tensor>,
}

impl DeviceTensors {
    /// The constant as a tensor on `device`. The model's own tensor is returned where it is on that device already.
    ///
    /// # Errors
    /// Out of memory; the model's file has changed since it was loaded.
    pub fn tensor(&mut self, constant: &Constant, device: Device) -> Result<Tensor, TchError> {
        if constant.device() == Some(device) {
            return constant.tensor();
        }
        Ok(match self.tensors.entry((constant.identity(), device)) {
            Entry::Occupied(known) => known.get().shallow_clone(),
            Entry::Vacant(entry) => {
                let tensor = entry.insert(constant.tensor()?.f_to_device(device)?).shallow_clone();
                constant.release();
                tensor
            }
        })
    }

    #[cfg(test)]
    pub fn values(&self) -> impl Iterator<Item = &Tensor> {
        self.tensors.values()
    }
}

/// The constants of one plan that is being compiled.
pub struct Constants<'a> {
    constants: &'a BTreeMap<ValueId, Constant>,
    tensors: &'a mut DeviceTensors,
    device: Device,
}

impl<'a> Constants<'a> {
    pub(super) fn new(
        constants: &'a BTreeMap<ValueId, Constant>,
        tensors: &'a mut DeviceTensors,
        device: Device,
    ) -> Self {
        Constants { constants, tensors, device }
    }

    /// The constant with this id; `None` for a value that depends on the input.
    pub(super) fn constant(&self, id: ValueId) -> Option<&Constant> {
        self.constants.get(&id)
    }

    /// The constant as a tensor on the plan's device; `None` as for [`Constants::constant`].
    pub(super) fn tensor(&mut self, id: ValueId) -> Result<Option<Tensor>, TchError> {
        self.constants.get(&id).map(|constant| self.tensors.tensor(constant, self.device)).transpose()
    }
}
