//! Bounds the size of an operator's results from its arguments, before it runs.
//!
//! A file may ask ATen for any size. A size that cannot fit is refused before memory is allocated. The numbers are
//! upper bounds: exact where operators enlarge (factories, padding, matrix products, …), and the broadcast size times
//! every whole number that could be a size for operators that are not known here.

use tch::Tensor;

use crate::torch::{Alias, ArgumentType, Operator, Value};

/// Integer arguments that are not sizes.
const NO_SIZES: [&str; 34] = [
    "dim",
    "dims",
    "dim0",
    "dim1",
    "axis",
    "axis0",
    "axis1",
    "start_dim",
    "end_dim",
    "start",
    "end",
    "step",
    "index",
    "indices",
    "dtype",
    "layout",
    "memory_format",
    "source",
    "destination",
    "offset",
    "diagonal",
    "correction",
    "ord",
    "groups",
    "num_groups",
    "upscale_factor",
    "downscale_factor",
    "chunks",
    "split_size",
    "split_sizes",
    "sections",
    "shifts",
    "normalized_shape",
    "reduction",
];

/// A bound on the number of elements of all results together.
pub fn elements(operator: &Operator, arguments: &[Value]) -> f64 {
    Call { operator, arguments }.bound()
}

/// A call before it is made.
struct Call<'a> {
    operator: &'a Operator,
    arguments: &'a [Value],
}

/// Sizes as floats: they never overflow, and a bound need not be exact.
fn sizes(tensor: &Tensor) -> Vec<f64> {
    tensor.size().into_iter().map(|size| size as f64).collect()
}

fn product(sizes: &[f64]) -> f64 {
    sizes.iter().product()
}

/// The product of every integer argument that could be a size.
fn magnitude(numbers: &[i64]) -> f64 {
    numbers.iter().map(|&v| v.unsigned_abs().max(1) as f64).product()
}

/// The last axis and the one before it.
fn matrix(sizes: &[f64]) -> (f64, f64) {
    match sizes {
        [.., rows, columns] => (*rows, *columns),
        [length] => (1.0, *length),
        [] => (1.0, 1.0),
    }
}

fn broadcast<'a>(shapes: impl Iterator<Item = &'a [f64]>) -> f64 {
    let mut all: Vec<f64> = Vec::new();
    for shape in shapes {
        for (i, &size) in shape.iter().rev().enumerate() {
            match all.get_mut(i) {
                Some(known) => *known = known.max(size),
                None => all.push(size),
            }
        }
    }
    product(&all)
}

impl Call<'_> {
    fn bound(&self) -> f64 {
        let name = self.operator.name().trim_start_matches("aten::").trim_end_matches('_');
        let shapes = self.shapes();
        let total: f64 = shapes.iter().map(|shape| product(shape)).sum();
        let together = broadcast(shapes.iter().map(Vec::as_slice));
        let first = shapes.first().map_or(1.0, |shape| product(shape));
        let second = shapes.get(1).map_or(1.0, |shape| product(shape));
        let (rows, columns) = matrix(shapes.first().map_or(&[], Vec::as_slice));
        let (other_rows, other_columns) = matrix(shapes.get(1).map_or(&[], Vec::as_slice));
        match name {
            "expand" | "broadcast_to" | "as_strided" => {
                let size = self.ints("size");
                magnitude(&size) * if size.contains(&-1) { first } else { 1.0 }
            }
            "new_zeros" | "new_ones" | "new_full" | "new_empty" => magnitude(&self.ints("size")),
            "_unsafe_view" | "_reshape_copy" | "view_copy" => first,
            "im2col" => self.patches(shapes.first().map_or(&[], Vec::as_slice)),
            // [N, C · kernel, patches] becomes [N, C, rows, columns].
            "col2im" => {
                let patches = shapes.first().and_then(|shape| shape.last().copied()).unwrap_or(1.0).max(1.0);
                first / patches / magnitude(&self.ints("kernel_size")) * magnitude(&self.ints("output_size"))
            }
            "unfold" => first * magnitude(&self.ints("size")),
            _ if self.is_view() => first,
            "arange" => {
                let step = self.real("step").unwrap_or(1.0).abs();
                ((self.real("end").unwrap_or(0.0) - self.real("start").unwrap_or(0.0)).abs() / step).ceil() + 1.0
            }
            "eye" => {
                let (n, m) = (magnitude(&self.ints("n")), self.ints("m"));
                n * if m.is_empty() { n } else { magnitude(&m) }
            }
            "cat" | "concat" | "concatenate" | "stack" | "hstack" | "vstack" | "dstack" => total,
            "repeat_interleave" | "one_hot" | "bincount" => {
                first.max(1.0) * (self.largest_value() + magnitude(&self.numbers()) + 1.0)
            }
            "linear" => first / columns.max(1.0) * other_rows,
            "matmul" | "mm" | "bmm" | "mv" | "dot" => {
                self.batches(&shapes) * rows * if shapes.get(1).map_or(0, Vec::len) < 2 { 1.0 } else { other_columns }
            }
            "addmm" | "baddbmm" | "addbmm" | "addmv" => {
                let product = shapes
                    .get(1)
                    .zip(shapes.get(2))
                    .map_or(0.0, |(a, b)| self.batches(&[a.clone(), b.clone()]) * matrix(a).0 * matrix(b).1);
                product.max(together)
            }
            "inner" | "cdist" => first / columns.max(1.0) * (second / other_columns.max(1.0)),
            "outer" | "ger" | "kron" | "tensordot" => first * second / magnitude(&self.ints("dims_self")).max(1.0),
            "einsum" => self.einsum(&shapes),
            "bilinear" => first / columns.max(1.0) * shapes.get(2).and_then(|w| w.first().copied()).unwrap_or(1.0),
            "linalg_multi_dot" | "chain_matmul" | "cartesian_prod" | "meshgrid" | "block_diag" => {
                let widest = shapes.iter().map(|shape| product(shape)).product::<f64>();
                widest * shapes.len() as f64
            }
            "scaled_dot_product_attention" => {
                let (keys, _) = matrix(shapes.get(1).map_or(&[], Vec::as_slice));
                first / columns.max(1.0) * keys + together
            }
            "lstm" | "gru" | "rnn_tanh" | "rnn_relu" => {
                first / columns.max(1.0) * shapes.iter().skip(1).map(|s| matrix(s).1).fold(1.0, f64::max) * 16.0
            }
            "diag" | "diagflat" | "diag_embed" | "vander" | "cov" | "corrcoef" => {
                (first + 1.0) * (columns.max(first.min(columns.max(rows))) + magnitude(&self.numbers()))
            }
            "embedding" => second * columns,
            "index" => {
                let indices = broadcast(shapes.iter().skip(1).map(Vec::as_slice));
                let indexed: f64 = shapes.first().map_or(1.0, |shape| self.indexed(shape));
                indices * first / indexed.max(1.0)
            }
            "index_select" => {
                let axis = self.ints("dim").first().map_or(0, |&dim| dim);
                let shape = shapes.first().map_or(&[][..], Vec::as_slice);
                let at = usize::try_from(axis.rem_euclid(shape.len().max(1) as i64)).unwrap_or(0);
                first / shape.get(at).copied().unwrap_or(1.0).max(1.0) * second
            }
            "gather" | "take" | "take_along_dim" => total,
            "grid_sampler" | "grid_sampler_2d" | "grid_sampler_3d" => {
                let shape = shapes.first().map_or(&[][..], Vec::as_slice);
                product(&shape[..shape.len().min(2)]) * second
            }
            "nonzero" | "argwhere" => first * shapes.first().map_or(1, |s| s.len().max(1)) as f64,
            // Their weights and statistics lie along the channels, and are not broadcast along the last axis.
            "prelu" | "_prelu_kernel" | "batch_norm" | "instance_norm" | "group_norm" => total,
            // Means and deviations beside the result.
            _ if name.contains("batch_norm") || name == "native_group_norm" => 3.0 * first + 2.0 * (total - first),
            _ if name.contains("conv") => self.convolution(&shapes),
            _ if name.contains("unpool") || name.contains("adaptive") || name.contains("upsample") => {
                self.resampled(shapes.first().map_or(&[], Vec::as_slice))
            }
            // The padding of a pooling is at most half its kernel.
            _ if name.contains("pool") => first * 4.0,
            _ if name.contains("pad") && !self.ints("pad").is_empty() => {
                self.padded(shapes.first().map_or(&[], Vec::as_slice), &self.ints("pad"))
            }
            _ if name.contains("pad") && !self.ints("padding").is_empty() => {
                self.padded(shapes.first().map_or(&[], Vec::as_slice), &self.ints("padding"))
            }
            _ if name.starts_with("linalg") || matches!(name, "svd" | "qr" | "cholesky" | "inverse") => {
                total + first / (rows * columns).max(1.0) * (rows * rows + columns * columns)
            }
            _ => together.max(total) * magnitude(&self.numbers()),
        }
    }

    /// The shapes of every tensor argument, those in lists included.
    fn shapes(&self) -> Vec<Vec<f64>> {
        self.arguments
            .iter()
            .flat_map(|argument| match argument {
                Value::Tensor(tensor) => vec![sizes(tensor)],
                Value::Tensors(list) => list.iter().flatten().map(sizes).collect(),
                _ => Vec::new(),
            })
            .collect()
    }

    fn is_view(&self) -> bool {
        let returns = &self.operator.schema().returns;
        !returns.is_empty() && returns.iter().all(|alias| *alias == Alias::Shared)
    }

    fn value(&self, name: &str) -> Option<&Value> {
        self.arguments.get(self.operator.schema().position(name)?)
    }

    /// The integers of an argument, by its name.
    fn ints(&self, name: &str) -> Vec<i64> {
        match self.value(name) {
            Some(Value::Int(v)) => vec![*v],
            Some(Value::Ints(list)) => list.clone(),
            _ => Vec::new(),
        }
    }

    fn real(&self, name: &str) -> Option<f64> {
        match self.value(name)? {
            Value::Int(v) => Some(*v as f64),
            Value::Float(v) => Some(*v),
            _ => None,
        }
    }

    /// Every integer that could be a size.
    fn numbers(&self) -> Vec<i64> {
        let schema = &self.operator.schema().arguments;
        schema
            .iter()
            .zip(self.arguments)
            .filter(|(argument, _)| {
                matches!(argument.kind, ArgumentType::Int | ArgumentType::Ints)
                    && !NO_SIZES.contains(&argument.name.as_str())
            })
            .flat_map(|(_, value)| match value {
                Value::Int(v) => vec![*v],
                Value::Ints(list) => list.clone(),
                _ => Vec::new(),
            })
            .collect()
    }

    /// The largest integer in a tensor argument: these operators make that many elements.
    fn largest_value(&self) -> f64 {
        self.arguments
            .iter()
            .filter_map(Value::tensor)
            .filter(|tensor| tensor.numel() > 0)
            .filter_map(|tensor| tensor.f_max().ok()?.f_double_value(&[]).ok())
            .fold(0.0, f64::max)
    }

    /// The product of the leading axes of two factors, broadcast.
    fn batches(&self, shapes: &[Vec<f64>]) -> f64 {
        broadcast(shapes.iter().take(2).map(|shape| &shape[..shape.len().saturating_sub(2)]))
    }

    /// The number of positions of `shape` that the index tensors select from.
    fn indexed(&self, shape: &[f64]) -> f64 {
        match self.value("indices") {
            Some(Value::Tensors(list)) => {
                list.iter().zip(shape).filter(|(index, _)| index.is_some()).map(|(_, size)| *size).product()
            }
            _ => 1.0,
        }
    }

    /// The sizes of the letters of the result; of all letters for three operands and more.
    fn einsum(&self, shapes: &[Vec<f64>]) -> f64 {
        let Some(Value::String(equation)) = self.value("equation") else { return f64::INFINITY };
        let equation: String = equation.chars().filter(|c| !c.is_whitespace()).collect();
        let (inputs, result) = match equation.split_once("->") {
            Some((inputs, result)) => (inputs, Some(result)),
            None => (equation.as_str(), None),
        };
        if equation.contains('.') {
            // An ellipsis stands for any axes.
            return shapes.iter().map(|shape| product(shape)).product();
        }
        let mut letters: std::collections::BTreeMap<char, f64> = std::collections::BTreeMap::new();
        for (term, shape) in inputs.split(',').zip(shapes) {
            for (letter, &size) in term.chars().zip(shape) {
                let known = letters.entry(letter).or_insert(size);
                *known = known.max(size);
            }
        }
        let kept = |letter: &char| shapes.len() > 2 || result.is_none_or(|result| result.contains(*letter));
        letters.iter().filter(|(letter, _)| kept(letter)).map(|(_, size)| *size).product()
    }

    fn convolution(&self, shapes: &[Vec<f64>]) -> f64 {
        let (Some(input), Some(weight)) = (shapes.first(), shapes.get(1)) else { return 0.0 };
        let axes = weight.len().saturating_sub(2);
        let at =
            |list: &[i64], axis: usize| list.get(axis).or(list.first()).map_or(1.0, |v| v.unsigned_abs().max(1) as f64);
        let transposed =
            self.operator.name().contains("transpose") || matches!(self.value("transposed"), Some(Value::Bool(true)));
        let (stride, padding, dilation) = (self.ints("stride"), self.ints("padding"), self.ints("dilation"));
        let extra = self.ints("output_padding");
        let groups = magnitude(&self.ints("groups"));
        let spatial: f64 = (0..axes)
            .map(|axis| {
                let size = input.len().checked_sub(axes - axis).and_then(|i| input.get(i)).copied().unwrap_or(1.0);
                let kernel = at(&dilation, axis) * weight[axis + 2];
                if transposed {
                    size * at(&stride, axis) + kernel + at(&extra, axis)
                } else {
                    // `padding` may be the text "same".
                    size + 2.0 * at(&padding, axis).max(kernel)
                }
            })
            .product();
        let channels = if transposed { weight.get(1).map_or(1.0, |c| c * groups) } else { weight[0] };
        input.first().copied().unwrap_or(1.0).max(1.0) * channels * spatial
    }

    /// Resampling to `output_size`, or by scale factors.
    fn resampled(&self, input: &[f64]) -> f64 {
        let output = self.ints("output_size");
        if !output.is_empty() {
            let lead = input.len().saturating_sub(output.len());
            // One number may stand for every axis.
            let every = if output.len() == 1 { 3 } else { 1 };
            return product(&input[..lead]).max(1.0) * magnitude(&output).powi(every);
        }
        let scales: f64 = match self.value("scale_factors") {
            Some(Value::Floats(list)) => list.iter().map(|scale| scale.abs().max(1.0)).product(),
            _ => 1.0,
        };
        let single: f64 = ["scales", "scales_h", "scales_w", "scales_d"]
            .iter()
            .filter_map(|name| self.real(name))
            .map(|scale| scale.abs().max(1.0))
            .product();
        product(input) * scales * single
    }

    /// A patch of the kernel's size at each pixel of the padded picture, at most.
    fn patches(&self, input: &[f64]) -> f64 {
        let padding = self.ints("padding");
        let axes = input.len().saturating_sub(2);
        let pixels: f64 = input[axes..]
            .iter()
            .enumerate()
            .map(|(axis, size)| size + 2.0 * padding.get(axis).or(padding.first()).map_or(0.0, |&p| p.max(0) as f64))
            .product();
        product(&input[..axes]) * pixels * magnitude(&self.ints("kernel_size"))
    }

    /// Two numbers per axis, from the last axis on.
    fn padded(&self, input: &[f64], pad: &[i64]) -> f64 {
        input
            .iter()
            .rev()
            .enumerate()
            .map(|(axis, size)| {
                let around: f64 = pad.iter().skip(2 * axis).take(2).map(|&p| p.max(0) as f64).sum();
                size + around
            })
            .product()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    /// Name, overload and named arguments.
    type Case = (&'static str, &'static str, Vec<(&'static str, Value)>);

    fn zeros(size: &[i64]) -> Value {
        Value::Tensor(Tensor::zeros(size, (Kind::Float, Device::Cpu)))
    }

    fn ints(list: &[i64]) -> Value {
        Value::Ints(list.to_vec())
    }

    #[test]
    fn no_result_is_larger_than_its_bound() {
        let calls: Vec<Case> = vec![
            ("add", "Tensor", vec![("self", zeros(&[4, 1])), ("other", zeros(&[3, 1, 5]))]),
            ("expand", "", vec![("self", zeros(&[3, 1, 1])), ("size", ints(&[2, -1, 7, 9]))]),
            ("repeat", "", vec![("self", zeros(&[3, 2])), ("repeats", ints(&[4, 5, 6]))]),
            ("matmul", "", vec![("self", zeros(&[2, 1, 3, 4])), ("other", zeros(&[5, 4, 6]))]),
            ("matmul", "", vec![("self", zeros(&[3, 4])), ("other", zeros(&[4]))]),
            ("linear", "", vec![("input", zeros(&[2, 7, 4])), ("weight", zeros(&[9, 4]))]),
            (
                "einsum",
                "",
                vec![
                    ("equation", Value::String("bik,bjk->bij".into())),
                    (
                        "tensors",
                        Value::Tensors(vec![
                            Some(Tensor::zeros([2, 3, 4], (Kind::Float, Device::Cpu))),
                            Some(Tensor::zeros([2, 5, 4], (Kind::Float, Device::Cpu))),
                        ]),
                    ),
                ],
            ),
            (
                "conv2d",
                "",
                vec![("input", zeros(&[2, 3, 8, 8])), ("weight", zeros(&[5, 3, 1, 1])), ("padding", ints(&[6, 7]))],
            ),
            (
                "conv_transpose2d",
                "input",
                vec![("input", zeros(&[2, 3, 4, 4])), ("weight", zeros(&[3, 5, 3, 3])), ("stride", ints(&[3, 3]))],
            ),
            ("new_zeros", "", vec![("self", zeros(&[50, 60])), ("size", ints(&[7, 8]))]),
            ("_unsafe_view", "", vec![("self", zeros(&[6, 4])), ("size", ints(&[2, 12]))]),
            (
                "im2col",
                "",
                vec![
                    ("self", zeros(&[2, 3, 8, 9])),
                    ("kernel_size", ints(&[3, 3])),
                    ("dilation", ints(&[1, 1])),
                    ("padding", ints(&[1, 1])),
                    ("stride", ints(&[2, 2])),
                ],
            ),
            (
                "col2im",
                "",
                vec![
                    ("self", zeros(&[2, 27, 20])),
                    ("output_size", ints(&[8, 9])),
                    ("kernel_size", ints(&[3, 3])),
                    ("dilation", ints(&[1, 1])),
                    ("padding", ints(&[1, 1])),
                    ("stride", ints(&[2, 2])),
                ],
            ),
            ("constant_pad_nd", "", vec![("self", zeros(&[2, 3, 4])), ("pad", ints(&[1, 2, 3, 4]))]),
            ("upsample_nearest2d", "", vec![("self", zeros(&[1, 2, 3, 3])), ("output_size", ints(&[10, 11]))]),
            ("adaptive_avg_pool2d", "", vec![("self", zeros(&[1, 2, 3, 3])), ("output_size", ints(&[7, 5]))]),
            (
                "max_pool2d",
                "",
                vec![
                    ("self", zeros(&[1, 2, 5, 5])),
                    ("kernel_size", ints(&[3, 3])),
                    ("stride", ints(&[1, 1])),
                    ("padding", ints(&[1, 1])),
                ],
            ),
            (
                "batch_norm",
                "",
                vec![
                    ("input", zeros(&[2, 64, 4, 4])),
                    ("weight", Value::None),
                    ("bias", Value::None),
                    ("running_mean", zeros(&[64])),
                    ("running_var", zeros(&[64])),
                    ("training", Value::Bool(false)),
                    ("momentum", Value::Float(0.1)),
                    ("eps", Value::Float(1e-5)),
                    ("cudnn_enabled", Value::Bool(false)),
                ],
            ),
            (
                "native_group_norm",
                "",
                vec![
                    ("input", zeros(&[2, 8, 3, 3])),
                    ("weight", Value::None),
                    ("bias", Value::None),
                    ("N", Value::Int(2)),
                    ("C", Value::Int(8)),
                    ("HxW", Value::Int(9)),
                    ("group", Value::Int(4)),
                    ("eps", Value::Float(1e-5)),
                ],
            ),
            ("prelu", "", vec![("self", zeros(&[2, 64, 3, 3])), ("weight", zeros(&[64]))]),
            ("cdist", "", vec![("x1", zeros(&[6, 2])), ("x2", zeros(&[7, 2]))]),
            ("outer", "", vec![("self", zeros(&[6])), ("vec2", zeros(&[7]))]),
            ("diag_embed", "", vec![("self", zeros(&[3, 6]))]),
            ("eye", "m", vec![("n", Value::Int(5)), ("m", Value::Int(9))]),
            ("arange", "start_step", vec![("start", Value::Int(0)), ("end", Value::Int(10)), ("step", Value::Int(3))]),
        ];
        for (name, overload, named) in calls {
            let operator = Operator::find(&format!("aten::{name}"), overload).unwrap();
            let named = named.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
            let arguments = operator.arrange(named).unwrap();
            let bound = elements(&operator, &arguments);
            let results = operator.call(&arguments).unwrap();
            let actual: usize = results.iter().filter_map(Value::tensor).map(Tensor::numel).sum();
            assert!(actual > 0 && actual as f64 <= bound, "{name}: {actual} elements, {bound} foreseen");
            assert!(bound <= 40.0 * actual as f64, "{name}: {bound} elements foreseen for {actual}");
        }
    }
}
