//! From a chosen frame to a row of a batch.

use std::sync::Arc;

use super::admission::Admission;
use super::background::Compute;
use super::buffers::Buffer;
use super::clock::Clock;
use super::error::JobError;
use super::job::{Ending, Onlooker};
use super::model_key::ModelKey;
use super::outputs::Outputs;
use super::queue::next_batch::Prepared;
use super::queue::turn::{Ready, Turn, Waiting};
use super::row_input::PreparedInput;
use super::served::Served;
use crate::explain::{Method, Target};
use crate::frame::{self, Decoded, Flaw, ModelToFrame, Payload, Pixels};
use crate::telemetry::{Progress, Stage};

/// A frame that was chosen for a batch.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) turn: Turn,
    pub(super) model: Arc<Served>,
    pub(super) method: Method,
    pub(super) targets: Vec<Target>,
    pub(super) outputs: Outputs,
    pub(super) payload: Payload,
    pub(super) progress: Progress,
    pub(super) admission: Admission,
    pub(super) onlooker: Option<Onlooker>,
    pub(super) ending: Ending,
}

/// What the rows of a batch share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BatchKey {
    model: ModelKey,
    method: Method,
}

impl Waiting for Chosen {
    type Key = BatchKey;

    fn turn(&self) -> &Turn {
        &self.turn
    }

    fn turn_mut(&mut self) -> &mut Turn {
        &mut self.turn
    }

    fn key(&self) -> BatchKey {
        BatchKey { model: self.model.key(), method: self.method.clone() }
    }

    fn belongs_to(&self, key: &BatchKey) -> bool {
        self.model.key() == key.model && self.method == key.method
    }

    fn max_batch(&self) -> usize {
        self.model.batching.rows()
    }

    fn runs_on(&self, worker: usize) -> bool {
        self.model.runs_on(worker)
    }
}

/// A frame that waits for the device.
#[derive(Debug)]
pub(super) struct PreparedRow {
    pub(super) about: RowInfo,
    pub(super) method: Method,
    pub(super) targets: Vec<Target>,
    /// `[C, H, W]`.
    pub(super) shape: [u32; 3],
    pub(super) input: PreparedInput,
}

impl Ready for PreparedRow {
    fn turn(&self) -> &Turn {
        &self.about.turn
    }

    fn shape(&self) -> [u32; 3] {
        self.shape
    }

    fn runs_on(&self, worker: usize) -> bool {
        self.about.model.runs_on(worker)
    }
}

/// The facts that rendering a row needs.
#[derive(Debug)]
pub(super) struct RowInfo {
    pub(super) turn: Turn,
    pub(super) model: Arc<Served>,
    pub(super) outputs: Outputs,
    pub(super) model_to_frame: ModelToFrame,
    /// Width and height of the frame as it was sent; for a tensor, those of the input.
    pub(super) frame_size: (u32, u32),
    /// Width and height of the model's input.
    pub(super) map_size: (u32, u32),
    /// What is wrong with the frame's file.
    pub(super) flaw: Option<Flaw>,
    /// The decoded frame, when a picture is drawn on it or an onlooker wants it.
    pub(super) picture: Option<Pixels>,
    /// Whether an onlooker wants the frame.
    pub(super) is_wanted: bool,
    pub(super) progress: Progress,
    /// Released when the frame ends.
    pub(super) admission: Admission,
    pub(super) ending: Ending,
}

/// Decodes a frame and prepares its input. A frame that is refused ends with its error; one that has expired ends as
/// expired; one that has already ended is left alone.
pub(super) fn prepare(chosen: Chosen, clock: &Arc<dyn Clock>, compute: &Compute) -> Prepared<PreparedRow> {
    let now = clock.now();
    if !chosen.turn.is_alive(now) {
        // This has no effect on a frame that has already ended.
        chosen.ending.expire();
        return Prepared::Ended;
    }
    chosen.progress.mark(Stage::Queue, now);
    let mut input = chosen.model.input_for(&chosen.payload);
    let reads_at = Arc::clone(clock);
    let (chosen, input, ended, result) = compute.run(move || {
        let mut ended = Vec::new();
        let mark = |stage| ended.push((stage, reads_at.now()));
        let result = read(&chosen.model, &chosen.payload, &chosen.outputs, mark, &mut input);
        (chosen, input, ended, result)
    });
    ended.into_iter().for_each(|(stage, at)| chosen.progress.mark(stage, at));
    let Chosen { turn, model, method, targets, outputs, progress, admission, onlooker, ending, payload: _ } = chosen;
    let (decoded, prepared) = match result {
        Ok(read) => read,
        Err(error) => {
            ending.finish(Err(error));
            return Prepared::Refused;
        }
    };
    let is_wanted = onlooker.is_some_and(|onlooker| onlooker.wants(clock.now()));
    let keeps_picture = outputs.needs_picture() || is_wanted;
    let flaw = decoded.picture().and_then(Pixels::flaw);
    let (frame_size, picture) = match decoded {
        Decoded::Picture(pixels) => (pixels.stored_size(), keeps_picture.then_some(pixels)),
        Decoded::Tensor(_) => ((prepared.width, prepared.height), None),
    };
    let shape = [model.input_size().channels, prepared.height, prepared.width];
    let about = RowInfo {
        turn,
        model,
        outputs,
        model_to_frame: prepared.model_to_frame,
        frame_size,
        map_size: (prepared.width, prepared.height),
        flaw,
        picture,
        is_wanted,
        progress,
        admission,
        ending,
    };
    Prepared::Row(PreparedRow { about, method, targets, shape, input })
}

/// Decodes a payload and writes the model's input to `input`. Calls `ended` at the end of a stage.
fn read(
    model: &Served,
    payload: &Payload,
    outputs: &Outputs,
    mut ended: impl FnMut(Stage),
    input: &mut PreparedInput,
) -> Result<(Decoded, frame::Prepared), JobError> {
    model.check_outputs(payload, outputs)?;
    let decoded = model.preparation.decode(payload, &model.limits.frame)?;
    ended(Stage::Decode);
    let prepared = match (input, &decoded) {
        (PreparedInput::Values(buffer), decoded) => model.preparation.prepare(decoded, &mut buffer.values)?,
        (PreparedInput::Picture(buffer), Decoded::Picture(pixels)) => {
            model.preparation.prepare_bytes(pixels, &mut buffer.values)?
        }
        (input @ PreparedInput::Picture(_), Decoded::Tensor(_)) => {
            let mut values = Vec::new();
            let prepared = model.preparation.prepare(&decoded, &mut values)?;
            *input = PreparedInput::Values(Buffer::of(values));
            prepared
        }
    };
    ended(Stage::Preprocess);
    Ok((decoded, prepared))
}
