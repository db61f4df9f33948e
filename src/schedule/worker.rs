//! The device worker: a plain thread, the only owner of its device.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::Instant;

use tch::{Device, Kind, Tensor};

use crate::explain::{ExplainError, Explainer, Prediction, TargetMaps, top_predictions};
use crate::frame::{Decoded, ModelToFrame};
use crate::telemetry::Stage;

use super::FrameFailure;
use super::former::{Batch, Handover, PreparedFrame};
use super::job::Running;

/// A map in host memory, row-major.
#[derive(Debug)]
pub(super) struct HostMap {
    pub values: Vec<f32>,
    pub shape: Vec<u32>,
}

/// The maps of one class at one layer, in host memory.
#[derive(Debug)]
pub(super) struct HostTarget {
    pub class_index: u32,
    pub score: f32,
    pub target_layer: String,
    pub no_positive_evidence: bool,
    pub layer_map: Option<HostMap>,
    pub grad_cam: Option<HostMap>,
    pub guided_backprop: Option<HostMap>,
    pub guided_grad_cam: Option<HostMap>,
}

/// A frame that the device is done with.
pub(super) struct Computed {
    pub running: Running,
    pub predictions: Vec<Prediction>,
    pub targets: Vec<HostTarget>,
    pub input: HostMap,
    pub model_to_frame: ModelToFrame,
    pub decoded: Option<Decoded>,
    pub batch_size: u32,
}

/// The worker's loop: until the former is gone.
pub(super) fn run(
    explainers: &mut [Explainer],
    device: Device,
    handover: &Handover,
    batches: &Receiver<Batch>,
    rendering: &SyncSender<Computed>,
) {
    loop {
        handover.device_waits();
        let Ok(batch) = batches.recv() else { return };
        handover.device_works();
        let batch: Batch = batch.into_iter().filter(|frame| frame.running.state.claim()).collect();
        if !batch.is_empty() {
            run_batch(explainers, device, batch, rendering);
        }
    }
}

/// Runs a batch; when it fails as a whole, its halves, so that a frame takes no other down and a batch too large for the
/// memory becomes small enough.
fn run_batch(explainers: &mut [Explainer], device: Device, mut batch: Batch, rendering: &SyncSender<Computed>) {
    let now = Instant::now();
    batch.iter_mut().for_each(|frame| frame.running.timings.mark(Stage::Batch, now));
    // The explainer keeps nothing of a run but compiled plans, so a panic leaves nothing half-made behind.
    let ran = catch_unwind(AssertUnwindSafe(|| compute(explainers, device, &mut batch)));
    let failure = match ran {
        Ok(Ok(rows)) => return deliver(batch, rows, rendering),
        Ok(Err(error)) if error.is_interrupted() => return,
        Ok(Err(error)) => FrameFailure::from(error),
        Err(_) => FrameFailure::internal("the engine panicked on this frame"),
    };
    if batch.len() == 1 {
        batch.into_iter().for_each(|frame| frame.running.complete(Err(failure.clone()), 1));
        return;
    }
    let rest = batch.split_off(batch.len() / 2);
    run_batch(explainers, device, batch, rendering);
    run_batch(explainers, device, rest, rendering);
}

/// What the device says of one row.
type Row = Result<(Vec<Prediction>, Vec<HostTarget>), ExplainError>;

fn compute(explainers: &mut [Explainer], device: Device, batch: &mut Batch) -> Result<Vec<Row>, ExplainError> {
    let first = &batch[0];
    let [height, width] = first.size.map(i64::from);
    let channels = first.input.len() as i64 / (height * width).max(1);
    let method = first.running.ask.method.clone();
    let explainer = &mut explainers[first.running.model.index()];
    let states: Vec<_> = batch.iter().map(|frame| frame.running.state.clone()).collect();
    let all_gone = || states.iter().all(|state| state.is_ended());

    let mut stacked = Vec::with_capacity(batch.iter().map(|frame| frame.input.len()).sum());
    batch.iter().for_each(|frame| stacked.extend_from_slice(&frame.input));
    let input = Tensor::f_from_slice(&stacked)?.f_view([batch.len() as i64, channels, height, width])?;
    drop(stacked);
    let input = input.f_to_device(device)?;
    mark(batch, Stage::CopyIn);

    let forward = explainer.forward(&method, &input, &all_gone)?;
    let targets: Vec<_> = batch.iter().map(|frame| frame.running.ask.targets.clone()).collect();
    let chosen = forward.classes(&targets);
    let logits = (0..batch.len()).map(|row| forward.row(row)).collect::<Result<Vec<_>, _>>()?;
    mark(batch, Stage::Forward);

    // A row that has failed or was taken back takes no part in the reverse.
    let classes: Vec<Vec<u32>> = chosen
        .iter()
        .zip(&states)
        .map(|(chosen, state)| match chosen {
            Ok(classes) if !state.is_ended() => classes.clone(),
            _ => Vec::new(),
        })
        .collect();
    let reversed = forward.reverse(&classes, &all_gone)?;
    mark(batch, Stage::Backward);
    let maps = reversed.fuse()?;
    mark(batch, Stage::Fuse);
    let maps = maps
        .into_iter()
        .map(|row| row.into_iter().map(to_host).collect::<Result<Vec<_>, _>>())
        .collect::<Result<Vec<_>, ExplainError>>()?;
    mark(batch, Stage::CopyOut);
    Ok(chosen
        .into_iter()
        .zip(logits)
        .zip(maps)
        .zip(batch.iter())
        .map(|(((chosen, logits), maps), frame)| {
            chosen?;
            Ok((top_predictions(&logits, frame.running.ask.top_predictions), maps))
        })
        .collect())
}

fn mark(batch: &mut Batch, stage: Stage) {
    let now = Instant::now();
    batch.iter_mut().for_each(|frame| frame.running.timings.mark(stage, now));
}

fn to_host(maps: TargetMaps) -> Result<HostTarget, ExplainError> {
    let copy = |tensor: Option<Tensor>| tensor.as_ref().map(host_map).transpose();
    Ok(HostTarget {
        class_index: maps.class_index,
        score: maps.score,
        target_layer: maps.target_layer,
        no_positive_evidence: maps.no_positive_evidence,
        layer_map: copy(maps.layer_map)?,
        grad_cam: copy(maps.grad_cam)?,
        guided_backprop: copy(maps.guided_backprop)?,
        guided_grad_cam: copy(maps.guided_grad_cam)?,
    })
}

fn host_map(tensor: &Tensor) -> Result<HostMap, ExplainError> {
    let shape = tensor.size().into_iter().map(|size| size as u32).collect();
    let flat = tensor.f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)?.f_contiguous()?.f_view([-1])?;
    let mut values = vec![0f32; flat.numel()];
    flat.f_copy_data(&mut values, flat.numel())?;
    Ok(HostMap { values, shape })
}

fn deliver(batch: Batch, rows: Vec<Row>, rendering: &SyncSender<Computed>) {
    let batch_size = batch.len() as u32;
    for (frame, row) in batch.into_iter().zip(rows) {
        let PreparedFrame { running, input, size: [height, width], model_to_frame, decoded } = frame;
        match row {
            Ok((predictions, targets)) => {
                let channels = (input.len() / (height as usize * width as usize).max(1)) as u32;
                let input = HostMap { values: input, shape: vec![channels, height, width] };
                let computed = Computed { running, predictions, targets, input, model_to_frame, decoded, batch_size };
                // When the renderers are gone, dropping the frame reports it.
                let _ = rendering.send(computed);
            }
            Err(error) => running.complete(Err(error.into()), batch_size),
        }
    }
}
