//! Views: the same elements in another shape, order or selection. The reverse is another view.

use tch::Tensor;

use crate::torch::Operator;

use super::arguments::{axis, first, integer, integers, optional_integer};
use super::explicit::{Single, with_reverse};
use super::meta::MetaTensor;

/// `view`, `reshape`, `flatten`, `squeeze`, `unsqueeze`, …: the elements keep their order.
pub(super) fn reshape(operator: Operator) -> Single {
    Box::new(move |arguments| {
        let shape = first(arguments)?.size();
        with_reverse(operator.call_tensor(arguments)?, move |grad_output| Ok(grad_output.f_reshape(&shape)?))
    })
}

/// `contiguous`, `clone`, `alias`: only the memory changes.
pub(super) fn identity(operator: Operator) -> Single {
    Box::new(move |arguments| {
        with_reverse(operator.call_tensor(arguments)?, |grad_output| Ok(grad_output.shallow_clone()))
    })
}

/// `to`, `_to_copy`, `type_as`: the gradient is converted to the input's dtype and device.
pub(super) fn cast(operator: Operator) -> Single {
    Box::new(move |arguments| {
        let (device, kind) = (first(arguments)?.device(), first(arguments)?.f_kind()?);
        with_reverse(operator.call_tensor(arguments)?, move |grad_output| {
            Ok(grad_output.f_to_device(device)?.f_to_kind(kind)?)
        })
    })
}

/// `permute(self, dims)`.
pub(super) fn permute(operator: Operator) -> Single {
    Box::new(move |arguments| {
        let rank = first(arguments)?.dim();
        let mut back = vec![0; rank];
        for (to, &from) in integers(arguments, 1)?.iter().enumerate() {
            let Some(from) = axis(from, rank) else { return Ok(None) };
            back[from] = to as i64;
        }
        with_reverse(operator.call_tensor(arguments)?, move |grad_output| Ok(grad_output.f_permute(&back)?))
    })
}

/// `transpose(self, dim0, dim1)`.
pub(super) fn transpose(operator: Operator) -> Single {
    Box::new(move |arguments| {
        let (a, b) = (integer(arguments, 1)?, integer(arguments, 2)?);
        with_reverse(operator.call_tensor(arguments)?, move |grad_output| Ok(grad_output.f_transpose(a, b)?))
    })
}

/// `t(self)`.
pub(super) fn matrix_transpose(operator: Operator) -> Single {
    Box::new(move |arguments| {
        if first(arguments)?.dim() != 2 {
            return Ok(None);
        }
        with_reverse(operator.call_tensor(arguments)?, |grad_output| Ok(grad_output.f_transpose(0, 1)?))
    })
}

/// `expand(self, size)`: the gradient is summed over repeated axes.
pub(super) fn expand(operator: Operator) -> Single {
    Box::new(move |arguments| {
        let meta = MetaTensor::of(first(arguments)?)?;
        with_reverse(operator.call_tensor(arguments)?, move |grad_output| meta.fit(grad_output.shallow_clone()))
    })
}

/// `slice(self, dim, start?, end?, step)`.
pub(super) fn slice(operator: Operator) -> Single {
    Box::new(move |arguments| {
        let shape = first(arguments)?.size();
        let (dim, step) = (integer(arguments, 1)?, integer(arguments, 4)?);
        let start = optional_integer(arguments, 2)?.unwrap_or(0);
        let end = optional_integer(arguments, 3)?.unwrap_or(i64::MAX);
        let result = operator.call_tensor(arguments)?;
        with_reverse(result, move |grad_output| {
            Ok(Tensor::f_slice_backward(grad_output, &shape, dim, start, end, step)?)
        })
    })
}

/// `narrow(self, dim, start, length)`.
pub(super) fn narrow(operator: Operator) -> Single {
    Box::new(move |arguments| {
        let shape = first(arguments)?.size();
        let Some(dim) = axis(integer(arguments, 1)?, shape.len()) else { return Ok(None) };
        let (Some(start), length) = (optional_integer(arguments, 2)?, integer(arguments, 3)?) else { return Ok(None) };
        let start = if start < 0 { start + shape[dim] } else { start };
        let result = operator.call_tensor(arguments)?;
        with_reverse(result, move |grad_output| {
            Ok(Tensor::f_slice_backward(grad_output, &shape, dim as i64, start, start + length, 1)?)
        })
    })
}

/// `select(self, dim, index)`.
pub(super) fn select(operator: Operator) -> Single {
    Box::new(move |arguments| {
        let shape = first(arguments)?.size();
        let (dim, index) = (integer(arguments, 1)?, integer(arguments, 2)?);
        let result = operator.call_tensor(arguments)?;
        with_reverse(result, move |grad_output| Ok(Tensor::f_select_backward(grad_output, &shape, dim, index)?))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tch::Kind;

    use crate::plan::rules::against_tape::{Layout, TestNode, Within, any, slot};
    use crate::torch::Value;

    fn int(value: i64) -> Value {
        Value::Int(value)
    }

    /// An axis, counted from either end.
    fn axis(at: prop::sample::Index, rank: usize, from_the_back: bool) -> i64 {
        at.index(rank) as i64 - if from_the_back { rank as i64 } else { 0 }
    }

    proptest! {
        #[test]
        fn a_new_shape_agrees_with_its_tape(
            which in 0..8,
            mut shape in any::shape(),
            (at, from_the_back) in any::<(prop::sample::Index, bool)>(),
            kind in any::kind(),
            input in any::layout(),
            grad_output in any::layout(),
        ) {
            let dim = axis(at, shape.len(), from_the_back);
            if which == 3 || which == 4 {
                let last = shape.len() - 1;
                shape[last] = 1;
            }
            let x = || -> Value { input.random(&shape, kind).into() };
            let test = match which {
                0 => {
                    let shape = Value::Ints(vec![shape[0], -1]);
                    TestNode::new("aten::reshape", "", vec![("self", x()), ("shape", shape)])
                }
                1 => {
                    let x = Layout::Contiguous.random(&shape, kind).into();
                    TestNode::new("aten::view", "", vec![("self", x), ("size", Value::Ints(vec![-1]))])
                }
                2 => TestNode::new("aten::flatten", "using_ints", vec![("self", x()), ("start_dim", int(dim))]),
                3 => TestNode::new("aten::squeeze", "dim", vec![("self", x()), ("dim", int(-1))]),
                4 => TestNode::new("aten::squeeze", "", vec![("self", x())]),
                5 => TestNode::new("aten::unsqueeze", "", vec![("self", x()), ("dim", int(dim))]),
                6 => {
                    let sizes = Value::Ints(vec![-1, 1]);
                    TestNode::new("aten::unflatten", "int", vec![("self", x()), ("dim", int(dim)), ("sizes", sizes)])
                }
                _ => TestNode::new("aten::squeeze", "dims", vec![("self", x()), ("dim", Value::Ints(vec![dim]))]),
            };
            test.agrees(true, &[slot(0)], grad_output, Within::Equal);
        }

        #[test]
        fn a_copy_or_a_cast_agrees_with_its_tape(
            which in 0..5,
            shape in any::shape(),
            kind in any::kind(),
            input in any::layout(),
            grad_output in any::layout(),
        ) {
            let x: Value = input.random(&shape, kind).into();
            let test = match which {
                0 => TestNode::new("aten::contiguous", "", vec![("self", x)]),
                1 => TestNode::new("aten::clone", "", vec![("self", x)]),
                2 => TestNode::new("aten::alias", "", vec![("self", x)]),
                3 => TestNode::new("aten::_to_copy", "", vec![("self", x), ("dtype", int(7))]),
                _ => TestNode::new("aten::to", "dtype", vec![("self", x), ("dtype", int(6))]),
            };
            test.agrees(true, &[slot(0)], grad_output, Within::Equal);
        }

        #[test]
        fn a_new_order_agrees_with_its_tape(
            which in 0..3,
            order in Just(vec![0i64, 1, 2, 3]).prop_shuffle(),
            shape in any::picture(),
            (a, b, from_the_back) in any::<(prop::sample::Index, prop::sample::Index, bool)>(),
            input in any::layout(),
            grad_output in any::layout(),
        ) {
            let x = input.random(&shape, Kind::Float);
            let test = match which {
                0 => {
                    let dims = order.into_iter().map(|d| if from_the_back { d - 4 } else { d }).collect();
                    TestNode::new("aten::permute", "", vec![("self", x.into()), ("dims", Value::Ints(dims))])
                }
                1 => {
                    let (a, b) = (axis(a, 4, from_the_back), axis(b, 4, false));
                    let named = vec![("self", x.into()), ("dim0", int(a)), ("dim1", int(b))];
                    TestNode::new("aten::transpose", "int", named)
                }
                _ => TestNode::new("aten::t", "", vec![("self", x.select(0, 0).select(0, 0).into())]),
            };
            test.agrees(true, &[slot(0)], grad_output, Within::Equal);
        }

        #[test]
        fn an_expansion_agrees_with_its_tape(
            mut shape in any::shape(),
            at: prop::sample::Index,
            times in 1..=4i64,
            rows in prop::option::of(1..=3i64),
            kind in any::kind(),
            grad_output in any::layout(),
        ) {
            let axis = at.index(shape.len());
            shape[axis] = 1;
            let mut size: Vec<i64> = rows.into_iter().chain(shape.iter().map(|_| -1)).collect();
            let last = size.len() - shape.len() + axis;
            size[last] = times;
            let x = Layout::Contiguous.random(&shape, kind);
            let test = TestNode::new("aten::expand", "", vec![("self", x.into()), ("size", Value::Ints(size))]);
            test.agrees(true, &[slot(0)], grad_output, Within::Equal);
        }

        #[test]
        fn a_part_agrees_with_its_tape(
            which in 0..3,
            shape in any::shape(),
            (at, from_the_back) in any::<(prop::sample::Index, bool)>(),
            (start, end) in (prop::option::of(-7..=7i64), prop::option::of(-7..=7i64)),
            step in 1..=3i64,
            kind in any::kind(),
            input in any::layout(),
            grad_output in any::layout(),
        ) {
            let dim = int(axis(at, shape.len(), from_the_back));
            let size = shape[at.index(shape.len())];
            let x: Value = input.random(&shape, kind).into();
            let optional = |v: Option<i64>| v.map_or(Value::None, Value::Int);
            let inside = start.unwrap_or(0).rem_euclid(size);
            let counted = if from_the_back { inside - size } else { inside };
            let test = match which {
                0 => TestNode::new("aten::slice", "Tensor", vec![
                    ("self", x), ("dim", dim), ("start", optional(start)), ("end", optional(end)), ("step", int(step)),
                ]),
                1 => TestNode::new("aten::select", "int", vec![("self", x), ("dim", dim), ("index", int(counted))]),
                _ => TestNode::new("aten::narrow", "", vec![
                    ("self", x), ("dim", dim), ("start", int(counted)), ("length", int(size - inside)),
                ]),
            };
            test.agrees(true, &[slot(0)], grad_output, Within::Equal);
        }
    }
}
