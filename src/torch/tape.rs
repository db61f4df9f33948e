//! The gradient of one call, through autograd.

use std::ptr;

use tch::Tensor;

use super::error::error_of;
use super::stack::own;
use super::{OperatorError, Value, ffi};

/// A recorded call: what autograd needs to propagate gradients from its outputs to its inputs. It can be used any
/// number of times.
#[derive(Debug)]
pub struct Tape {
    leaves: Vec<Tensor>,
    /// The output tensors in order, lists flattened; none for one that depends on no leaf.
    outputs: Vec<Option<Tensor>>,
}

impl Tape {
    /// Runs `body` on leaves that share the memory of `inputs`, and records it. `body` calls operators through
    /// [`super::Operator::call_recording`]. The values that are returned carry no gradient.
    pub fn record(
        inputs: &[Tensor],
        body: impl FnOnce(&[Tensor]) -> Result<Vec<Value>, OperatorError>,
    ) -> Result<(Vec<Value>, Tape), OperatorError> {
        let leaves = inputs
            .iter()
            .map(|input| Ok(input.f_detach()?.f_set_requires_grad(true)?))
            .collect::<Result<Vec<_>, OperatorError>>()?;
        let results = body(&leaves)?;
        let mut outputs = Vec::new();
        let mut keep = |tensor: Tensor| -> Result<Tensor, OperatorError> {
            let plain = tensor.f_detach()?;
            outputs.push(tensor.requires_grad().then_some(tensor));
            Ok(plain)
        };
        let mut values = Vec::with_capacity(results.len());
        for value in results {
            values.push(match value {
                Value::Tensor(tensor) => Value::Tensor(keep(tensor)?),
                Value::Tensors(list) => Value::Tensors(
                    list.into_iter()
                        .map(|element| element.map(&mut keep).transpose())
                        .collect::<Result<Vec<_>, OperatorError>>()?,
                ),
                other => other,
            });
        }
        Ok((values, Tape { leaves, outputs }))
    }

    /// Whether an output depends on an input. Output tensors are counted in order, lists flattened.
    pub fn is_differentiable(&self, output: usize) -> bool {
        self.outputs.get(output).is_some_and(Option::is_some)
    }

    /// The gradients of the inputs, from those of the outputs (none: zero). An input on which none of these outputs
    /// depends has no gradient.
    pub fn gradients(&self, outputs: &[Option<&Tensor>]) -> Result<Vec<Option<Tensor>>, OperatorError> {
        let (scores, seeds): (Vec<_>, Vec<_>) = self
            .outputs
            .iter()
            .zip(outputs)
            .filter_map(|(output, gradient)| Some((output.as_ref()?.as_ptr(), gradient.as_ref()?.as_ptr())))
            .unzip();
        let inputs: Vec<_> = self.leaves.iter().map(Tensor::as_ptr).collect();
        let mut results = vec![ptr::null_mut(); inputs.len()];
        let mut error = ptr::null_mut();
        // SAFETY: every pointer comes from a live tensor of `self` or of the caller, the arrays have the lengths that
        // are passed, and the caller owns the results.
        unsafe {
            let status = ffi::camlens_gradient(
                scores.as_ptr(),
                seeds.as_ptr(),
                scores.len(),
                inputs.as_ptr(),
                inputs.len(),
                results.as_mut_ptr(),
                &raw mut error,
            );
            if status != ffi::OK {
                return Err(error_of("autograd::grad", status, error));
            }
            Ok(results.into_iter().map(|pointer| own(pointer)).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::Operator;

    #[test]
    fn the_gradient_of_one_call_is_that_of_autograd() {
        let mul = Operator::find("aten::mul", "Tensor").unwrap();
        let (a, b) = (Tensor::from_slice(&[2.0f32, 3.0]), Tensor::from_slice(&[5.0f32, 7.0]));
        let (values, tape) = Tape::record(&[a, b], |leaves| {
            mul.call_recording(&[Value::Tensor(leaves[0].shallow_clone()), Value::Tensor(leaves[1].shallow_clone())])
        })
        .unwrap();
        assert!(!values[0].tensor().unwrap().requires_grad());
        for _ in 0..2 {
            let seed = Tensor::from_slice(&[1.0f32, 10.0]);
            let gradients = tape.gradients(&[Some(&seed)]).unwrap();
            assert_eq!(Vec::<f32>::try_from(gradients[0].as_ref().unwrap()).unwrap(), [5.0, 70.0]);
            assert_eq!(Vec::<f32>::try_from(gradients[1].as_ref().unwrap()).unwrap(), [2.0, 30.0]);
        }
    }

    #[test]
    fn an_output_without_a_gradient_is_left_out() {
        let relu = Operator::find("aten::relu", "").unwrap();
        let (_, tape) = Tape::record(&[Tensor::from_slice(&[1.0f32])], |leaves| {
            relu.call_recording(&[Value::Tensor(leaves[0].shallow_clone())])
        })
        .unwrap();
        assert!(tape.is_differentiable(0));
        assert!(tape.gradients(&[None]).unwrap()[0].is_none());
    }
}
