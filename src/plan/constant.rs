//! A plan's constants: the model's own, and those that are made of them.

use tch::{Kind, TchError, Tensor};

/// A constant. One that is made of others takes no memory of its own until somebody asks for its tensor.
///
/// The tensors within live as long as the model does, or as long as the [`Weights`](super::Weights) of its plans.
#[derive(Debug)]
pub(super) enum Constant {
    Whole(Tensor),
    /// A convolution's weight, each filter multiplied by its scale: `[outputs, 1, …]` in double precision.
    Scaled {
        weight: Tensor,
        scale: Tensor,
    },
    /// In bfloat16.
    Rounded(Box<Constant>),
}

/// Tells constants apart: those with the same identity have the same values.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Identity {
    /// Address, shape and strides.
    Whole(usize, Vec<i64>, Vec<i64>),
    Scaled(Box<[Identity; 2]>),
    Rounded(Box<Identity>),
}

impl Constant {
    /// Its tensor, which is computed unless it is there as it is.
    ///
    /// # Errors
    /// Out of memory.
    pub fn tensor(&self) -> Result<Tensor, TchError> {
        match self {
            Constant::Whole(tensor) => Ok(tensor.shallow_clone()),
            Constant::Scaled { weight, scale } => {
                weight.f_to_kind(Kind::Double)?.f_mul(scale)?.f_to_kind(weight.f_kind()?)
            }
            Constant::Rounded(wide) => wide.tensor()?.f_to_kind(Kind::BFloat16),
        }
    }

    pub fn size(&self) -> Vec<i64> {
        match self {
            Constant::Whole(tensor) | Constant::Scaled { weight: tensor, .. } => tensor.size(),
            Constant::Rounded(wide) => wide.size(),
        }
    }

    pub fn kind(&self) -> Result<Kind, TchError> {
        match self {
            Constant::Whole(tensor) | Constant::Scaled { weight: tensor, .. } => tensor.f_kind(),
            Constant::Rounded(_) => Ok(Kind::BFloat16),
        }
    }

    pub fn identity(&self) -> Identity {
        let whole = |tensor: &Tensor| Identity::Whole(tensor.data_ptr() as usize, tensor.size(), tensor.stride());
        match self {
            Constant::Whole(tensor) => whole(tensor),
            Constant::Scaled { weight, scale } => Identity::Scaled(Box::new([whole(weight), whole(scale)])),
            Constant::Rounded(wide) => Identity::Rounded(Box::new(wide.identity())),
        }
    }
}

impl Clone for Constant {
    fn clone(&self) -> Self {
        match self {
            Constant::Whole(tensor) => Constant::Whole(tensor.shallow_clone()),
            Constant::Scaled { weight, scale } => {
                Constant::Scaled { weight: weight.shallow_clone(), scale: scale.shallow_clone() }
            }
            Constant::Rounded(wide) => Constant::Rounded(wide.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::sketch::random;

    fn scaled() -> Constant {
        Constant::Scaled { weight: random(&[2, 3, 1, 1]), scale: random(&[2, 1, 1, 1]).to_kind(Kind::Double) }
    }

    #[test]
    fn a_made_constant_is_computed_in_double_precision_and_has_the_dtype_of_its_weight() {
        let constant = scaled();
        let Constant::Scaled { weight, scale } = &constant else { panic!("it is scaled") };
        let product = weight.to_kind(Kind::Double) * scale;
        assert_eq!(constant.tensor().unwrap(), product.to_kind(Kind::Float));
        assert_eq!((constant.size(), constant.kind().unwrap()), (vec![2, 3, 1, 1], Kind::Float));
        let rounded = Constant::Rounded(Box::new(constant.clone()));
        assert_eq!(rounded.tensor().unwrap(), product.to_kind(Kind::Float).to_kind(Kind::BFloat16));
        assert_eq!((rounded.size(), rounded.kind().unwrap()), (vec![2, 3, 1, 1], Kind::BFloat16));
    }

    #[test]
    fn a_constant_is_known_by_what_it_is_made_of() {
        let constant = scaled();
        let Constant::Scaled { weight, scale } = &constant else { panic!("it is scaled") };
        assert_eq!(constant.identity(), constant.clone().identity());
        let others = [
            Constant::Whole(weight.shallow_clone()),
            Constant::Whole(weight.view([3, 2])),
            Constant::Scaled { weight: weight.shallow_clone(), scale: scale.copy() },
            Constant::Scaled { weight: weight.copy(), scale: scale.shallow_clone() },
            Constant::Rounded(Box::new(constant.clone())),
        ];
        for (i, other) in others.iter().enumerate() {
            assert_ne!(other.identity(), constant.identity());
            assert!(others[..i].iter().all(|earlier| earlier.identity() != other.identity()));
        }
    }
}
