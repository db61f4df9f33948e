//! A plan's constants: the model's own, and those computed from them.

use std::sync::Arc;

use tch::{Device, Kind, TchError, Tensor};

use crate::model::stored::{self, Stored};

/// Elements that are scaled at a time.
const NUMBERS_AT_ONCE: i64 = 1 << 17;

/// A constant. One that is computed from others takes no memory until its tensor is asked for; nor does one of the
/// model's that was released.
///
/// Tensors within live as long as the [`Weights`](super::Weights) of the plans, so their addresses identify them.
#[derive(Debug)]
pub(super) enum Constant {
    Whole(Tensor),
    /// One of the model's.
    Stored(Arc<Stored>),
    /// A convolution's weight times a scale for each filter: `[outputs, 1, …]` in double precision.
    Scaled {
        weight: Box<Constant>,
        scale: Tensor,
    },
    /// Converted to another dtype.
    Converted(Box<Constant>, Kind),
}

/// Identifies a constant: equal identities have equal values.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Identity {
    /// Address, shape and strides.
    Whole(usize, Vec<i64>, Vec<i64>),
    Stored(stored::Identity),
    Scaled(Box<[Identity; 2]>),
    Converted(Box<Identity>, Kind),
}

impl Constant {
    /// The tensor, which is computed, or read from the model's file, unless it is in memory.
    ///
    /// # Errors
    /// Out of memory; the model's file has changed since it was loaded.
    pub fn tensor(&self) -> Result<Tensor, TchError> {
        match self {
            Constant::Whole(tensor) => Ok(tensor.shallow_clone()),
            Constant::Stored(stored) => stored.tensor().map_err(|error| TchError::Convert(error.to_string())),
            Constant::Scaled { weight, scale } => scaled(&weight.tensor()?, scale),
            Constant::Converted(of, kind) => of.tensor()?.f_to_kind(*kind),
        }
    }

    /// Releases the model's tensors that this is computed from, after the caller has packed or copied them.
    pub fn release(&self) {
        match self {
            Constant::Whole(_) => {}
            Constant::Stored(stored) => stored.leave(),
            Constant::Scaled { weight: of, .. } | Constant::Converted(of, _) => of.release(),
        }
    }

    /// Where the tensor is, without computing or copying it; `None` for a constant that is computed from others.
    pub fn device(&self) -> Option<Device> {
        match self {
            Constant::Whole(tensor) => Some(tensor.device()),
            // The model's file is read into the host's memory.
            Constant::Stored(_) => Some(Device::Cpu),
            Constant::Scaled { .. } | Constant::Converted(..) => None,
        }
    }

    pub fn size(&self) -> Vec<i64> {
        match self {
            Constant::Whole(tensor) => tensor.size(),
            Constant::Stored(stored) => stored.size().to_vec(),
            Constant::Scaled { weight: of, .. } | Constant::Converted(of, _) => of.size(),
        }
    }

    pub fn kind(&self) -> Result<Kind, TchError> {
        match self {
            Constant::Whole(tensor) => tensor.f_kind(),
            Constant::Stored(stored) => Ok(stored.kind()),
            Constant::Scaled { weight, .. } => weight.kind(),
            Constant::Converted(_, kind) => Ok(*kind),
        }
    }

    pub fn identity(&self) -> Identity {
        let whole = |tensor: &Tensor| Identity::Whole(tensor.data_ptr() as usize, tensor.size(), tensor.stride());
        match self {
            Constant::Whole(tensor) => whole(tensor),
            Constant::Stored(stored) => Identity::Stored(stored.identity()),
            Constant::Scaled { weight, scale } => Identity::Scaled(Box::new([weight.identity(), whole(scale)])),
            Constant::Converted(of, kind) => Identity::Converted(Box::new(of.identity()), *kind),
        }
    }
}

/// Scales some filters at a time: all of them in double precision could take more memory than the packed weight.
fn scaled(weight: &Tensor, scale: &Tensor) -> Result<Tensor, TchError> {
    let (filters, kind) = (weight.size()[0], weight.f_kind()?);
    let result = weight.f_empty_like()?;
    let at_once = (filters * NUMBERS_AT_ONCE / (weight.numel() as i64).max(1)).max(1);
    for first in (0..filters).step_by(at_once as usize) {
        let some = |tensor: &Tensor| tensor.f_narrow(0, first, at_once.min(filters - first));
        some(&result)?.f_copy_(&some(weight)?.f_to_kind(Kind::Double)?.f_mul(&some(scale)?)?.f_to_kind(kind)?)?;
    }
    Ok(result)
}

impl Clone for Constant {
    fn clone(&self) -> Self {
        match self {
            Constant::Whole(tensor) => Constant::Whole(tensor.shallow_clone()),
            Constant::Stored(stored) => Constant::Stored(Arc::clone(stored)),
            Constant::Scaled { weight, scale } => {
                Constant::Scaled { weight: weight.clone(), scale: scale.shallow_clone() }
            }
            Constant::Converted(of, kind) => Constant::Converted(of.clone(), *kind),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::test_graphs::random;

    fn scaled() -> Constant {
        let weight = Box::new(Constant::Whole(random(&[2, 3, 1, 1])));
        Constant::Scaled { weight, scale: random(&[2, 1, 1, 1]).to_kind(Kind::Double) }
    }

    #[test]
    fn a_made_constant_is_computed_in_double_precision_and_has_the_dtype_of_its_weight() {
        let constant = scaled();
        let Constant::Scaled { weight, scale } = &constant else { panic!("not scaled") };
        let product = weight.tensor().unwrap().to_kind(Kind::Double) * scale;
        assert_eq!(constant.tensor().unwrap(), product.to_kind(Kind::Float));
        assert_eq!((constant.size(), constant.kind().unwrap()), (vec![2, 3, 1, 1], Kind::Float));
        let rounded = Constant::Converted(Box::new(constant.clone()), Kind::BFloat16);
        assert_eq!(rounded.tensor().unwrap(), product.to_kind(Kind::Float).to_kind(Kind::BFloat16));
        assert_eq!((rounded.size(), rounded.kind().unwrap()), (vec![2, 3, 1, 1], Kind::BFloat16));
    }

    #[test]
    fn a_constant_is_known_by_what_it_is_made_of() {
        let constant = scaled();
        let Constant::Scaled { weight, scale } = &constant else { panic!("not scaled") };
        assert_eq!(constant.identity(), constant.clone().identity());
        let other = Box::new(Constant::Whole(weight.tensor().unwrap().copy()));
        let others = [
            Constant::Whole(weight.tensor().unwrap()),
            Constant::Whole(weight.tensor().unwrap().view([3, 2])),
            Constant::Scaled { weight: weight.clone(), scale: scale.copy() },
            Constant::Scaled { weight: other, scale: scale.shallow_clone() },
            Constant::Converted(Box::new(constant.clone()), Kind::BFloat16),
            Constant::Converted(Box::new(constant.clone()), Kind::Half),
        ];
        for (i, other) in others.iter().enumerate() {
            assert_ne!(other.identity(), constant.identity());
            assert!(others[..i].iter().all(|earlier| earlier.identity() != other.identity()));
        }
    }
}
