//! A batch recorded as two graphs.

use std::time::Duration;

use tch::{Device, Kind, Tensor};

use super::Loaded;
use super::staging::Staging;
use crate::explain::{ExplainError, Method, NO_TARGET, PackedMaps, Target, ranked};
use crate::plan::{Mode, Never, tuning};
use crate::schedule::device::Batch;
use crate::schedule::model_key::ModelKey;
use crate::schedule::row_input::RowInput;
use crate::torch::cuda::{Graph, GraphPool, Stream, normalize};

/// What recordings differ in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    pub model: ModelKey,
    pub method: Method,
    /// `[C, H, W]` of each row.
    pub shape: [u32; 3],
    /// A power of two, or the model's maximum: a smaller batch is filled up.
    pub rows: usize,
    /// Classes of each row.
    pub rounds: usize,
    /// Whether rows are pictures' bytes, `[H, W, C]`, that the device normalises; else numbers, `[C, H, W]`.
    pub normalizes: bool,
}

/// Kernels are timed for no longer before a batch is recorded.
const TUNING: Duration = Duration::from_secs(60);
/// The most classes of a row that are recorded together.
const MAX_ROUNDS: usize = 16;

impl Key {
    /// That of the smallest recording for a batch; `None` if it has too many classes for one.
    pub fn of(batch: &Batch<'_>, max_rows: Option<u32>) -> Option<Self> {
        let rounds = batch.targets.iter().map(|targets| codes(targets).len()).max().unwrap_or(0).max(1);
        let most = max_rows.map_or(usize::MAX, |rows| rows as usize);
        let rows = batch.inputs.len().next_power_of_two().min(most.max(batch.inputs.len()));
        (rounds <= MAX_ROUNDS).then(|| Key {
            model: batch.model,
            method: batch.method.clone(),
            shape: batch.shape,
            rows,
            rounds,
            normalizes: batch.inputs.iter().all(|input| matches!(input, RowInput::Picture(..))),
        })
    }

    fn codes_bytes(&self) -> usize {
        self.rows * self.rounds * size_of::<i64>()
    }

    fn row_values(&self) -> usize {
        self.shape.iter().map(|&side| side as usize).product()
    }

    fn row_bytes(&self) -> usize {
        self.row_values() * if self.normalizes { 1 } else { size_of::<f32>() }
    }

    fn input_bytes(&self) -> usize {
        self.codes_bytes() + self.rows * self.row_bytes()
    }
}

/// The codes of a row's targets, each once, as [`Enqueued::choose`](crate::explain::Enqueued::choose) takes them.
fn codes(targets: &[Target]) -> Vec<i64> {
    let mut codes = Vec::new();
    let mut add = |code: i64| {
        if !codes.contains(&code) {
            codes.push(code);
        }
    };
    for target in targets {
        match *target {
            Target::Class(class) => add(i64::from(class)),
            Target::Top(count) => (0..count.min(MAX_ROUNDS as u32 + 1)).for_each(|rank| add(ranked(rank))),
        }
    }
    codes
}

/// Two graphs, and the memory that they read and write.
pub struct Recording {
    pub key: Key,
    /// The targets' codes, then the rows: `[bytes]` of u8.
    input: Tensor,
    pub forward: Graph,
    pub reverse: Graph,
    pub packed: PackedMaps,
}

impl Recording {
    /// Runs the batch once on zeros, so that kernels are chosen and weights are on the device; then records it.
    ///
    /// # Errors
    /// What the explainer says, and work that cannot be recorded.
    pub fn new(
        Loaded { explainer, preparation }: &mut Loaded,
        key: &Key,
        pool: &GraphPool,
        stream: &Stream,
        device: u32,
    ) -> Result<Self, ExplainError> {
        let options = (Kind::Uint8, Device::Cuda(device as usize));
        let input = stream.within(|| Tensor::f_zeros([key.input_bytes() as i64], options))??;
        let (codes, rows) = stream.within(|| views(&input, key))??;
        let values = || -> Result<Tensor, ExplainError> {
            if !key.normalizes {
                return Ok(rows.shallow_clone());
            }
            let (mean, std) = preparation.normalization();
            // Operators of exact mode read contiguous memory, as on the processor.
            Ok(normalize(&rows, mean, std, key.method.mode != Mode::Exact)?)
        };
        let run = || -> Result<(), ExplainError> {
            let enqueued = explainer.enqueue(&key.method, &values()?, &Never)?;
            let chosen = enqueued.choose(&codes)?;
            PackedMaps::new(&chosen, &enqueued.maps(&chosen, &Never)?)?;
            Ok(())
        };
        stream.within(|| tuning(TUNING, run))??;
        stream.synchronize()?;
        let (forward, (enqueued, chosen)) = pool.record(stream, || -> Result<_, ExplainError> {
            let enqueued = explainer.enqueue(&key.method, &values()?, &Never)?;
            let chosen = enqueued.choose(&codes)?;
            Ok((enqueued, chosen))
        })?;
        let (reverse, packed) = pool.record(stream, || -> Result<_, ExplainError> {
            PackedMaps::new(&chosen, &enqueued.maps(&chosen, &Never)?)
        })?;
        Ok(Recording { key: key.clone(), input, forward, reverse, packed })
    }

    pub fn input_bytes(&self) -> usize {
        self.key.input_bytes()
    }

    /// The first bytes of the device's memory for the input.
    pub fn input(&self, bytes: usize) -> Result<Tensor, ExplainError> {
        Ok(self.input.f_narrow(0, 0, bytes as i64)?)
    }

    /// The first values of page-locked memory, for the results.
    pub fn output_to(&self, output: &Staging) -> Result<Tensor, ExplainError> {
        let bytes = output.first(self.packed.len() * size_of::<f32>())?;
        Ok(bytes.f_view_dtype(Kind::Float)?)
    }

    /// Writes a batch as the graphs read it, and returns the number of bytes that go to the device. Rows that only fill
    /// the batch keep what was there before.
    pub fn write(&self, memory: &mut [u8], batch: &Batch<'_>) -> usize {
        let (numbers, rows) = memory.split_at_mut(self.key.codes_bytes());
        let (numbers, _) = numbers.as_chunks_mut::<8>();
        let mut all = numbers.chunks_exact_mut(self.key.rounds);
        let none: &[Target] = &[];
        for targets in batch.targets.iter().copied().chain(std::iter::repeat(none)) {
            let Some(numbers) = all.next() else { break };
            let codes = codes(targets).into_iter().chain(std::iter::repeat(NO_TARGET));
            numbers.iter_mut().zip(codes).for_each(|(number, code)| *number = code.to_ne_bytes());
        }
        let row_bytes = self.key.row_bytes();
        let chunks = rows.chunks_exact_mut(row_bytes.max(1));
        if self.key.normalizes {
            for (to, row) in chunks.zip(&batch.inputs) {
                if let RowInput::Picture(bytes, _) = row {
                    to.iter_mut().zip(*bytes).for_each(|(to, byte)| *to = *byte);
                }
            }
        } else {
            for (to, row) in chunks.zip(&batch.values()) {
                let (to, _) = to.as_chunks_mut::<4>();
                to.iter_mut().zip(row.iter()).for_each(|(to, value)| *to = value.to_ne_bytes());
            }
        }
        self.key.codes_bytes() + batch.inputs.len() * row_bytes
    }
}

/// The targets' codes `[N, rounds]` and the rows in the input's memory: `[N, H, W, C]` of u8 for the device to
/// normalise, else `[N, C, H, W]` of f32.
fn views(input: &Tensor, key: &Key) -> Result<(Tensor, Tensor), ExplainError> {
    let (codes, all) = (key.codes_bytes() as i64, key.input_bytes() as i64);
    let [channels, height, width] = key.shape.map(i64::from);
    let numbers = input.f_narrow(0, 0, codes)?.f_view_dtype(Kind::Int64)?;
    let rows = input.f_narrow(0, codes, all - codes)?;
    let rows = if key.normalizes {
        rows.f_view([key.rows as i64, height, width, channels])?
    } else {
        rows.f_view_dtype(Kind::Float)?.f_view([key.rows as i64, channels, height, width])?
    };
    Ok((numbers.f_view([key.rows as i64, key.rounds as i64])?, rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_coded_each_once() {
        assert_eq!(codes(&[Target::Class(3), Target::Top(2), Target::Class(3)]), [3, ranked(0), ranked(1)]);
        assert_eq!(codes(&[]), [0i64; 0]);
    }

    #[test]
    fn a_batch_takes_the_smallest_recording_that_holds_it() {
        let method = Method::default();
        let key = |rows: usize, targets: &[Target], max_rows| {
            let batch = Batch {
                model: ModelKey::new(),
                method: &method,
                shape: [1, 1, 1],
                inputs: vec![RowInput::Values(&[0.0]); rows],
                targets: vec![targets; rows],
            };
            Key::of(&batch, max_rows).map(|key| (key.rows, key.rounds))
        };
        assert_eq!(key(1, &[Target::Top(1)], None), Some((1, 1)));
        assert_eq!(key(3, &[Target::Top(5)], None), Some((4, 5)));
        assert_eq!(key(1, &[], Some(1)), Some((1, 1)));
        assert_eq!(key(5, &[Target::Top(1)], Some(6)), Some((6, 1)));
        assert_eq!(key(1, &[Target::Top(1000)], None), None);
    }
}
