//! From a chosen job to a row of a batch.

use std::sync::Arc;

use super::admission::Admission;
use super::clock::Clock;
use super::job::{Ending, JobError};
use super::outputs::Outputs;
use super::served::Served;
use crate::explain::{Method, Target};
use crate::frame::{self, Decoded, ModelToFrame, Payload, Pixels};
use crate::telemetry::{Stage, Timings};

/// A job without the parts that wait.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) model_index: usize,
    pub(super) model: Arc<Served>,
    pub(super) method: Method,
    pub(super) targets: Vec<Target>,
    pub(super) outputs: Outputs,
    pub(super) payload: Payload,
    pub(super) timings: Timings,
    pub(super) admission: Admission,
    pub(super) ending: Ending,
}

/// A frame that only waits for the device.
#[derive(Debug)]
pub(super) struct PreparedRow {
    pub(super) about: RowInfo,
    pub(super) method: Method,
    pub(super) targets: Vec<Target>,
    pub(super) model_index: usize,
    /// `[C, H, W]`.
    pub(super) shape: [u32; 3],
    pub(super) input: Vec<f32>,
}

/// What a row's rendering needs to know.
#[derive(Debug)]
pub(super) struct RowInfo {
    pub(super) model: Arc<Served>,
    pub(super) outputs: Outputs,
    pub(super) model_to_frame: ModelToFrame,
    /// Width and height of the frame as it was sent; the input's for a tensor.
    pub(super) frame_size: (u32, u32),
    /// Kept only when it is drawn on.
    pub(super) picture: Option<Pixels>,
    pub(super) timings: Timings,
    /// Given back with the answer.
    pub(super) admission: Admission,
    pub(super) ending: Ending,
}

/// Decodes and prepares. A frame that cannot be gets its error, and there is no row.
pub(super) fn prepare(mut chosen: Chosen, clock: &dyn Clock) -> Option<PreparedRow> {
    chosen.timings.mark(Stage::Queue, clock.now());
    let mut input = Vec::new();
    let result = read(&chosen.model, &chosen.payload, &chosen.outputs, &mut chosen.timings, clock, &mut input);
    let Chosen { model_index, model, method, targets, outputs, timings, admission, ending, payload: _ } = chosen;
    let (decoded, prepared) = match result {
        Ok(read) => read,
        Err(error) => {
            ending.finish(Err(error));
            return None;
        }
    };
    let (frame_size, picture) = match decoded {
        Decoded::Picture(pixels) => (pixels.stored_size(), outputs.needs_picture().then_some(pixels)),
        Decoded::Tensor(_) => ((prepared.width, prepared.height), None),
    };
    let shape = [model.input_size().channels, prepared.height, prepared.width];
    let about = RowInfo {
        model,
        outputs,
        model_to_frame: prepared.model_to_frame,
        frame_size,
        picture,
        timings,
        admission,
        ending,
    };
    Some(PreparedRow { about, method, targets, model_index, shape, input })
}

fn read(
    model: &Served,
    payload: &Payload,
    outputs: &Outputs,
    timings: &mut Timings,
    clock: &dyn Clock,
    input: &mut Vec<f32>,
) -> Result<(Decoded, frame::Prepared), JobError> {
    model.check_header(payload, outputs)?;
    let decoded = frame::decode(payload, &model.limits.frame)?;
    timings.mark(Stage::Decode, clock.now());
    let prepared = model.preparation.prepare(&decoded, input)?;
    timings.mark(Stage::Preprocess, clock.now());
    Ok((decoded, prepared))
}
