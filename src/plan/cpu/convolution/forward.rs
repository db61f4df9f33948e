//! How a convolution's result comes of its input: by oneDNN, by a matrix product, by Winograd's algorithm or without the input's zeros,
//! whichever is faster.

use tch::Tensor;

use crate::torch::{Call, OperatorError, Value, channels_last};

use super::epilogue::Activation;
use super::epilogue::After;
use super::gemm::{Gemm, GemmCall};
use super::geometry::Geometry;
use super::onednn::{INPUT, Operators};
use super::sparse::{OF_RESULTS, SparseThere, SparseThereCall, like_others};
use super::winograd::{Winograd, WinogradCall};
use crate::plan::cpu::autotune::{Candidate, bytes, fastest};
use crate::plan::rules::rectifiers::Gate;

/// Weights laid out for a way.
#[derive(Debug)]
pub(in crate::plan) enum WayThere {
    Direct(Tensor),
    Gemm(Gemm),
    Winograd(Winograd),
    Sparse(SparseThere),
}

impl WayThere {
    /// The fastest way for a convolution of `weight` with what follows it, tried on `input`.
    pub fn choose(
        weight: &Tensor,
        geometry: &Geometry,
        input: &Tensor,
        after: &After<'_>,
        operators: &Operators,
    ) -> Result<Self, OperatorError> {
        let size = input.size();
        let ways = Self::candidates(weight, geometry, &size, operators);
        let input = &channels_last(&like_others(input, OF_RESULTS)?)?;
        fastest(ways, Self::size, |way| {
            let call = way.call(&Value::None, geometry, after.at_once(), operators)?;
            Ok(move || Ok(call.run_with(input, after)?.0))
        })
    }

    /// How many bytes its weights take.
    pub fn size(&self) -> usize {
        match self {
            WayThere::Direct(weight) => bytes(weight),
            WayThere::Gemm(gemm) => gemm.size(),
            WayThere::Winograd(winograd) => winograd.size(),
            WayThere::Sparse(sparse) => sparse.size(),
        }
    }

    /// The weights, where they lie so that a way back can read them too.
    pub fn panels(&self) -> Result<Option<Tensor>, OperatorError> {
        match self {
            WayThere::Sparse(sparse) => Ok(Some(sparse.panels())),
            WayThere::Gemm(gemm) => gemm.panels(),
            WayThere::Direct(_) | WayThere::Winograd(_) => Ok(None),
        }
    }

    /// Every way that there may be.
    pub fn candidates<'a>(
        weight: &'a Tensor,
        geometry: &'a Geometry,
        input: &'a [i64],
        operators: &'a Operators,
    ) -> Vec<Candidate<'a, Self>> {
        let mut ways = Self::dense(weight, geometry, input, operators);
        ways.push(Candidate::new(move || Ok(SparseThere::new(weight, geometry)?.map(WayThere::Sparse))));
        ways
    }

    /// Those that make products of zeros too.
    pub fn dense<'a>(
        weight: &'a Tensor,
        geometry: &'a Geometry,
        input: &'a [i64],
        operators: &'a Operators,
    ) -> Vec<Candidate<'a, Self>> {
        let direct = move || Ok(Some(WayThere::Direct(operators.lay_out(weight, geometry, input)?)));
        let gemm = move || Ok(Gemm::new(weight, geometry)?.map(WayThere::Gemm));
        let winograd = Winograd::candidates(weight, geometry).into_iter().map(|way| way.map(WayThere::Winograd));
        [Candidate::new(direct), Candidate::new(gemm)].into_iter().chain(winograd).collect()
    }

    /// The way with everything but the input, of whatever size.
    pub fn call(
        &self,
        bias: &Value,
        geometry: &Geometry,
        activation: Activation,
        operators: &Operators,
    ) -> Result<ThereCall, OperatorError> {
        Ok(match self {
            WayThere::Direct(weight) => ThereCall::Direct(operators.convolution(weight, bias, geometry, activation)?),
            WayThere::Gemm(gemm) => ThereCall::Gemm(gemm.call(bias.tensor(), geometry, activation)?),
            WayThere::Winograd(winograd) => ThereCall::Winograd(winograd.call(bias.tensor(), geometry, activation)?),
            WayThere::Sparse(sparse) => ThereCall::Sparse(sparse.call(bias.tensor(), geometry, activation)?),
        })
    }
}

/// A way with everything but the input.
#[derive(Debug)]
pub(in crate::plan) enum ThereCall {
    Direct(Call),
    Gemm(GemmCall),
    Winograd(WinogradCall),
    Sparse(SparseThereCall),
}

impl ThereCall {
    /// The result, of an input with its channels next to each other in memory.
    pub fn run(&self, input: &Tensor) -> Result<Tensor, OperatorError> {
        match self {
            ThereCall::Direct(call) => call.call([(INPUT, input)]),
            ThereCall::Gemm(call) => call.run(input),
            ThereCall::Winograd(call) => call.run(input),
            ThereCall::Sparse(call) => call.run(input),
        }
    }

    /// The same with all that follows, where the call was made for [what it does of that at once](After::at_once).
    pub fn run_with(&self, input: &Tensor, after: &After<'_>) -> Result<(Tensor, Option<Gate>), OperatorError> {
        match self {
            ThereCall::Gemm(call) => call.run_with(input, after),
            _ => after.then(self.run(input)?),
        }
    }
}
