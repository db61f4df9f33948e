//! Products of matrices and the like: which axes are summed over, and which are kept.

use crate::model::node::ValueId;
use crate::torch::Value;

use super::Axis;
use super::axis::{Factor, coarsened};
use super::call::{Call, position};

/// A sum of products over some axes of its operands. An axis is named by a label, as in Einstein's notation.
pub struct Contraction {
    pub operands: Vec<Operand>,
    /// The labels of the result.
    result: Vec<usize>,
}

pub struct Operand {
    pub value: ValueId,
    axes: Vec<Axis>,
    labels: Vec<usize>,
    depends: bool,
}

impl Contraction {
    /// The contraction that a node computes; none if it is another operator, or not understood.
    pub fn of(call: &Call<'_>) -> Option<Self> {
        let (operands, result) = match call.name() {
            "linear" => {
                let rank = call.input("input")?.len();
                let lead: Vec<usize> = (2..=rank).collect();
                let labels = |last: usize| lead.iter().copied().chain([last]).collect::<Vec<_>>();
                (vec![("input", labels(0)), ("weight", vec![1, 0])], labels(1))
            }
            "addmm" => (vec![("mat1", vec![2, 0]), ("mat2", vec![0, 1])], vec![2, 1]),
            "mm" => (vec![("self", vec![2, 0]), ("mat2", vec![0, 1])], vec![2, 1]),
            "bmm" => (vec![("self", vec![3, 2, 0]), ("mat2", vec![3, 0, 1])], vec![3, 2, 1]),
            "baddbmm" => (vec![("batch1", vec![3, 2, 0]), ("batch2", vec![3, 0, 1])], vec![3, 2, 1]),
            "matmul" => {
                let (left, right) = (call.input("self")?.len(), call.input("other")?.len());
                if left < 2 || right < 2 {
                    return None;
                }
                let rank = left.max(right);
                // The axes before the last two, counted from the last.
                let lead = |rank: usize| (3..=rank).rev();
                let labels = |rank: usize, last: [usize; 2]| lead(rank).chain(last).collect::<Vec<_>>();
                (vec![("self", labels(left, [2, 0])), ("other", labels(right, [0, 1]))], labels(rank, [2, 1]))
            }
            "einsum" => return Self::einsum(call),
            "tensordot" => return Self::tensordot(call),
            _ => return None,
        };
        let operands = operands.into_iter().map(|(name, labels)| Operand::new(call, call.value(name)?, labels));
        Some(Contraction { operands: operands.collect::<Option<_>>()?, result })
    }

    /// `"bij,bjd->bid"`. An ellipsis stands for the axes that have no letter, aligned at the last of them.
    fn einsum(call: &Call<'_>) -> Option<Self> {
        let Some(Value::String(equation)) = call.node.literal("equation") else { return None };
        let equation: String = equation.chars().filter(|letter| !letter.is_whitespace()).collect();
        let (inputs, result) = match equation.split_once("->") {
            Some((inputs, result)) => (inputs.to_owned(), result.to_owned()),
            None => {
                let mut letters: Vec<char> = equation.chars().filter(char::is_ascii_alphabetic).collect();
                letters.sort_unstable();
                let once = |letter: &char| letters.iter().filter(|other| *other == letter).count() == 1;
                let ellipsis = if equation.contains("...") { "..." } else { "" };
                let letters: String = letters.iter().filter(|letter| once(letter)).collect();
                (equation.clone(), format!("{ellipsis}{letters}"))
            }
        };
        let values = call.values("tensors")?;
        let texts: Vec<&str> = inputs.split(',').collect();
        if texts.len() != values.len() {
            return None;
        }
        let mut widest = 0;
        let mut operands = Vec::new();
        for (value, text) in values.into_iter().zip(texts) {
            let lettered = text.chars().filter(char::is_ascii_alphabetic).count();
            let count = call.axes.get(value)?.len().checked_sub(lettered)?;
            widest = widest.max(count);
            operands.push(Operand::new(call, value, labels(text, count))?);
        }
        Some(Contraction { operands, result: labels(&result, widest) })
    }

    /// `tensordot(self, other, dims_self, dims_other)`: sums over pairs of axes.
    fn tensordot(call: &Call<'_>) -> Option<Self> {
        let rank = |name: &str| Some(call.input(name)?.len());
        let (left, right) = (rank("self")?, rank("other")?);
        let positions = |name: &str, rank: usize| {
            let dims = call.ints(name)?.into_iter();
            dims.map(|dim| position(dim, rank)).collect::<Option<Vec<usize>>>()
        };
        let (own, others) = (positions("dims_self", left)?, positions("dims_other", right)?);
        if own.len() != others.len() {
            return None;
        }
        let label = |dim: usize| others.iter().position(|&other| other == dim).map_or(left + dim, |pair| own[pair]);
        let (first, second): (Vec<usize>, Vec<usize>) = ((0..left).collect(), (0..right).map(label).collect());
        let kept = first.iter().chain(&second).copied().filter(|label| !own.contains(label)).collect();
        let operand = |name: &str, labels: Vec<usize>| Operand::new(call, call.value(name)?, labels);
        Some(Contraction { operands: vec![operand("self", first)?, operand("other", second)?], result: kept })
    }

    /// The axes of the result.
    pub fn axes(&self) -> Vec<Axis> {
        // A layer of a flattened map leaves no positions; one that runs along positions, for each feature, may.
        let mixes = |operand: &Operand| operand.depends && self.sums_positions(operand) && self.keeps_channels(operand);
        let mixes_positions = self.operands.iter().any(mixes);
        let summed = |operand: &Operand| {
            let axes = operand.labels.iter().zip(&operand.axes).filter(|(label, _)| !self.result.contains(label));
            axes.flat_map(|(_, axis)| axis.factors().to_vec()).collect::<Vec<_>>()
        };
        let consumed: Vec<Factor> = self.operands.iter().find(|o| o.depends).map(summed).unwrap_or_default();
        coarsened(self.result.iter().map(|&label| self.axis(label, mixes_positions)).collect(), &consumed)
    }

    fn axis(&self, label: usize, mixes_positions: bool) -> Axis {
        let with_label = |depends: bool| {
            self.operands.iter().filter(move |operand| operand.depends == depends).filter_map(move |o| o.axis(label))
        };
        let combined = with_label(true).cloned().reduce(|a, b| a.combined(&b));
        match combined {
            Some(axis) => axis,
            // Of a constant alone: new features, unless they are sums over positions and may be positions again.
            None => {
                let size = with_label(false).map(Axis::size).max().unwrap_or(1);
                if mixes_positions { Axis::unknown(size) } else { Axis::channel(size) }
            }
        }
    }

    /// Whether an axis of the operand that is summed over holds positions of the picture.
    pub fn sums_positions(&self, operand: &Operand) -> bool {
        let summed = |label: &usize| !self.result.contains(label);
        operand.labels.iter().zip(&operand.axes).any(|(label, axis)| summed(label) && axis.is_spatial())
    }

    /// Whether an axis of the operand that is kept, and that no other operand has, holds features.
    pub fn keeps_channels(&self, operand: &Operand) -> bool {
        let is_own = |label: &usize| self.operands.iter().filter(|other| other.labels.contains(label)).count() == 1;
        let is_kept = |label: &usize| self.result.contains(label) && is_own(label);
        let is_feature = |axis: &Axis| axis.size() > 1 && axis.is_channel();
        operand.labels.iter().zip(&operand.axes).any(|(label, axis)| is_kept(label) && is_feature(axis))
    }
}

/// The labels of a text, whose ellipsis stands for `count` axes.
fn labels(text: &str, count: usize) -> Vec<usize> {
    /// Beyond every letter: the last axis of an ellipsis, the one before it, ….
    const ELLIPSIS: usize = 1 << 16;
    let letters = |text: &str| text.chars().map(|letter| letter as usize).collect::<Vec<_>>();
    match text.split_once("...") {
        Some((before, after)) => {
            let between = (0..count).rev().map(|from_last| ELLIPSIS + from_last);
            letters(before).into_iter().chain(between).chain(letters(after)).collect()
        }
        None => letters(text),
    }
}

impl Operand {
    fn new(call: &Call<'_>, value: ValueId, labels: Vec<usize>) -> Option<Self> {
        let axes = call.axes.get(value)?.to_vec();
        (axes.len() == labels.len()).then(|| Operand { value, axes, labels, depends: call.axes.depends(value) })
    }

    fn axis(&self, label: usize) -> Option<&Axis> {
        Some(&self.axes[self.labels.iter().position(|own| *own == label)?])
    }
}
