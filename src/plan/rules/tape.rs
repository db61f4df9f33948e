//! The rule that covers every operator: autograd over one node.

use tch::Tensor;

use crate::model::operation::Operation;
use crate::plan::rule::{Gradient, Rule, RuleOutput, Saved, Slot};
use crate::torch::{OperatorError, Tape, Value};

use super::strides::canonical_strides;

/// Records one operation on a tape and computes gradients by autograd.
///
/// It is the specification of every explicit rule.
#[derive(Debug)]
pub struct TapeRule {
    operation: Operation,
    guided: bool,
}

impl TapeRule {
    /// `guided`: the operation is a rectifier, whose derivative a guided reverse applies to `max(gradient, 0)`.
    pub fn new(operation: Operation, guided: bool) -> Self {
        TapeRule { operation, guided }
    }

    /// On the CPU, ATen's backward of `instance_norm` (2.11) is silently wrong for one row and a channels-last
    /// gradient: it reads the row as a batch of its channels.
    fn takes_contiguous_gradient(&self) -> bool {
        matches!(&self.operation, Operation::Aten(operator) if operator.name() == "aten::instance_norm")
    }
}

impl Rule for TapeRule {
    fn forward(&self, arguments: &[Value], wanted: &[Slot]) -> Result<RuleOutput, OperatorError> {
        if wanted.is_empty() {
            return Ok((self.operation.run(arguments, false)?, None));
        }
        let inputs = wanted
            .iter()
            .map(|slot| Ok(slot.tensor(arguments)?.shallow_clone()))
            .collect::<Result<Vec<_>, OperatorError>>()?;
        let (results, tape) = Tape::record(&inputs, |leaves| {
            let mut arguments = arguments.to_vec();
            for (slot, leaf) in wanted.iter().zip(leaves) {
                slot.put(&mut arguments, leaf.shallow_clone())?;
            }
            self.operation.run(&arguments, true)
        })?;
        let takes_contiguous = self.takes_contiguous_gradient();
        Ok((results, Some(Box::new(Recorded { tape, guided: self.guided, takes_contiguous }))))
    }
}

struct Recorded {
    tape: Tape,
    guided: bool,
    takes_contiguous: bool,
}

impl Saved for Recorded {
    fn reverse(&self, results: &[Option<Tensor>], gradient: Gradient) -> Result<Vec<Option<Tensor>>, OperatorError> {
        let gradients = results
            .iter()
            .map(|grad_output| {
                grad_output
                    .as_ref()
                    .map(|grad_output| {
                        let grad_output = if self.takes_contiguous {
                            grad_output.f_contiguous()?
                        } else {
                            canonical_strides(grad_output)?
                        };
                        if self.guided && gradient == Gradient::Guided {
                            Ok(grad_output.f_clamp_min(0)?)
                        } else {
                            Ok(grad_output)
                        }
                    })
                    .transpose()
            })
            .collect::<Result<Vec<_>, OperatorError>>()?;
        self.tape.gradients(&gradients.iter().map(Option::as_ref).collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::plan::rules::against_tape::{TestNode, slot};

    #[test]
    fn a_value_used_twice_has_a_gradient_for_each_use() {
        let x = Tensor::from_slice(&[2.0f32, -3.0]);
        let test = TestNode::new("aten::mul", "Tensor", vec![("self", x.shallow_clone().into()), ("other", x.into())]);
        let (_, saved) = test.tape().forward(&test.values, &[slot(0), slot(1)]).unwrap();
        let found = saved.unwrap().reverse(&[Some(Tensor::from_slice(&[1.0f32, 10.0]))], Gradient::Plain).unwrap();
        for gradient in found {
            assert_eq!(Vec::<f32>::try_from(gradient.unwrap()).unwrap(), [2.0, -30.0]);
        }
    }

    #[test]
    fn a_gradient_in_any_memory_layout_gives_the_same_through_an_instance_normalisation() {
        let values = |waves: f64| {
            let steps = Tensor::arange(8 * 6 * 5, (Kind::Float, Device::Cpu));
            (steps * waves).sin().view([1, 8, 6, 5])
        };
        let found = |gradient: Tensor| {
            let named = vec![
                ("input", values(0.37).into()),
                ("weight", Value::None),
                ("bias", Value::None),
                ("running_mean", Value::None),
                ("running_var", Value::None),
                ("use_input_stats", Value::Bool(true)),
                ("momentum", Value::Float(0.1)),
                ("eps", Value::Float(1e-5)),
                ("cudnn_enabled", Value::Bool(false)),
            ];
            let test = TestNode::new("aten::instance_norm", "", named);
            let (_, saved) = test.tape().forward(&test.values, &[slot(0)]).unwrap();
            saved.unwrap().reverse(&[Some(gradient)], Gradient::Plain).unwrap().remove(0).unwrap()
        };
        let wanted = found(values(0.61));
        // The rows' order in memory is that of [N, H, W, C].
        let channels_last = values(0.61).permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
        let odd = channels_last.as_strided([1, 8, 6, 5], [8, 1, 40, 8], None::<i64>);
        for gradient in [channels_last, odd] {
            let difference = (found(gradient) - &wanted).abs().max().double_value(&[]);
            assert!(difference < 1e-6, "{difference}");
        }
    }

    #[test]
    fn an_element_of_a_list_has_its_own_gradient() {
        let parts = vec![Some(Tensor::from_slice(&[1.0f32])), Some(Tensor::from_slice(&[2.0f32, 3.0]))];
        let test = TestNode::new("aten::cat", "", vec![("tensors", Value::Tensors(parts)), ("dim", Value::Int(0))]);
        let wanted = [Slot { argument: 0, element: Some(1) }];
        let (_, saved) = test.tape().forward(&test.values, &wanted).unwrap();
        let gradient = Tensor::from_slice(&[5.0f32, 6.0, 7.0]);
        let found = saved.unwrap().reverse(&[Some(gradient)], Gradient::Plain).unwrap();
        assert_eq!(Vec::<f32>::try_from(found[0].as_ref().unwrap()).unwrap(), [6.0, 7.0]);
    }

    #[test]
    fn results_of_a_list_are_flat_and_those_without_a_gradient_count_as_zero() {
        let x = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0]);
        let test = TestNode::new("aten::chunk", "", vec![("self", x.into()), ("chunks", Value::Int(2))]);
        let (results, saved) = test.tape().forward(&test.values, &[slot(0)]).unwrap();
        assert_eq!(results.len(), 2);
        let gradient = Tensor::from_slice(&[5.0f32, 6.0]);
        let found = saved.unwrap().reverse(&[None, Some(gradient)], Gradient::Plain).unwrap();
        assert_eq!(Vec::<f32>::try_from(found[0].as_ref().unwrap()).unwrap(), [0.0, 0.0, 5.0, 6.0]);
    }

    #[test]
    fn detach_has_no_gradient() {
        let test = TestNode::new("aten::detach", "", vec![("self", Tensor::from_slice(&[1.0f32]).into())]);
        let (_, saved) = test.tape().forward(&test.values, &[slot(0)]).unwrap();
        let found = saved.unwrap().reverse(&[Some(Tensor::from_slice(&[1.0f32]))], Gradient::Plain).unwrap();
        assert!(found[0].is_none());
    }

    #[test]
    fn nothing_is_saved_when_no_gradient_is_wanted() {
        let test = TestNode::new("aten::exp", "", vec![("self", Tensor::from_slice(&[0.0f32]).into())]);
        let (results, saved) = test.tape().forward(&test.values, &[]).unwrap();
        assert!(saved.is_none() && !results[0].tensor().unwrap().requires_grad());
    }

    #[test]
    fn a_tape_can_be_walked_plainly_and_guided_in_turn() {
        let x = Tensor::from_slice(&[1.0f32, 1.0, -1.0]);
        let test = TestNode::new("aten::relu", "", vec![("self", x.into())]).rectifier();
        let (_, saved) = test.tape().forward(&test.values, &[slot(0)]).unwrap();
        let saved = saved.unwrap();
        let gradient = [Some(Tensor::from_slice(&[-4.0f32, 5.0, 6.0]))];
        for (kind, expected) in [
            (Gradient::Guided, [0.0, 5.0, 0.0]),
            (Gradient::Plain, [-4.0, 5.0, 0.0]),
            (Gradient::Guided, [0.0, 5.0, 0.0]),
        ] {
            let found = saved.reverse(&gradient, kind).unwrap();
            assert_eq!(Vec::<f32>::try_from(found[0].as_ref().unwrap()).unwrap(), expected);
        }
    }

    /// The error of ATen's own batch_norm backward is larger than its result here.
    #[test]
    fn batch_norm_of_one_row_reads_an_oddly_strided_gradient_rightly() {
        tch::manual_seed(1);
        let (c, h, w) = (12, 8, 8);
        let options = (Kind::Float, Device::Cpu);
        let x = Tensor::randn([1, c, h, w], options);
        let test = TestNode::new(
            "aten::batch_norm",
            "",
            vec![
                ("input", x.into()),
                ("weight", Tensor::randn([c], options).into()),
                ("bias", Tensor::randn([c], options).into()),
                ("running_mean", Tensor::randn([c], options).into()),
                ("running_var", (Tensor::rand([c], options) + 0.5).into()),
                ("training", Value::Bool(false)),
                ("momentum", Value::Float(0.1)),
                ("eps", Value::Float(1e-5)),
                ("cudnn_enabled", Value::Bool(true)),
            ],
        );
        let (_, saved) = test.tape().forward(&test.values, &[slot(0)]).unwrap();
        let saved = saved.unwrap();
        let rows = Tensor::randn([1, h * w, c], options);
        let odd = rows.transpose(1, 2).view([1, c, h, w]);
        assert_eq!(odd.stride(), [c, 1, w * c, c]);
        let of = |g: Tensor| saved.reverse(&[Some(g)], Gradient::Plain).unwrap().remove(0).unwrap();
        let (from_odd, from_plain) = (of(odd.shallow_clone()), of(odd.contiguous()));
        let error = f64::try_from((&from_odd - &from_plain).norm() / from_plain.norm()).unwrap();
        assert!(error < 1e-6, "relative error {error}");
    }
}
