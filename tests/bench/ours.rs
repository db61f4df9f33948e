//! camlens in the bench: the engine in this process.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use camlens::explain::{Explainer, Forward, Maps, Method, Mode};
use camlens::model::{LoadLimits, Model};
use camlens::plan::Never;
use camlens::torch::has_bfloat16;
use tch::{Device, Kind, Tensor};

use super::Result;

/// The forward run of the plan; Grad-CAM; Guided Grad-CAM of one class for each row; of five classes.
const RUNS: [&str; 4] = ["forward", "grad-cam", "explain", "explain-5"];
/// The same in bfloat16, if the processor supports it.
const BFLOAT16_RUNS: [&str; 3] = ["forward-bf16", "explain-bf16", "explain-5-bf16"];

/// The explained classes. As in `peers.py`.
pub const CLASSES: [u32; 5] = [281, 282, 7, 340, 999];
/// Pause before each run, until threads of the previous run stop spinning. As in `peers.py`.
pub const PAUSE: Duration = Duration::from_millis(50);
/// A run of fewer seconds is done twice and the second is measured, so that no run depends on the caches that another
/// one left. As in `peers.py`.
pub const LONG: f64 = 0.3;

pub struct Ours {
    explainer: Explainer,
    input: Tensor,
    classes: Vec<u32>,
    grad_cam: Method,
    guided_grad_cam: Method,
    in_bfloat16: Method,
}

/// The runs that this processor supports.
pub fn runs() -> Vec<&'static str> {
    let reduced: &[&str] = if has_bfloat16() { &BFLOAT16_RUNS } else { &[] };
    RUNS.iter().chain(reduced).copied().collect()
}

impl Ours {
    /// `input` is a `.npy` file; without one, the input is noise.
    pub fn new(model: &Path, rows: usize, input: Option<&Path>) -> Result<Self> {
        let model = Model::load("bench", 1, model, &LoadLimits::default())?;
        let size = model.metadata.input.shape.map(|dimension| dimension.example());
        let input = match input {
            Some(file) => Tensor::read_npy(file)?,
            None => Tensor::f_randn([rows as i64, size[1], size[2], size[3]], (Kind::Float, Device::Cpu))?,
        };
        let mut explainer = Explainer::new(model, Device::Cpu);
        let method = |maps| Method { maps, ..Method::default() };
        let grad_cam = method(Maps { grad_cam: true, ..Maps::default() });
        let guided_grad_cam = method(Maps { guided_grad_cam: true, ..Maps::default() });
        let in_bfloat16 = Method { mode: Mode::Bfloat16, ..guided_grad_cam.clone() };
        let known = explainer.forward(&grad_cam, &input, &Never)?.logits().size()[1];
        let classes = CLASSES.map(|class| if i64::from(class) < known { class } else { 0 }).to_vec();
        Ok(Ours { explainer, input, classes, grad_cam, guided_grad_cam, in_bfloat16 })
    }

    /// Guided Grad-CAM of the first row and its first class, `[1, C, H, W]`.
    pub fn first_map(&mut self) -> Result<Tensor> {
        let forward = self.explainer.forward(&self.guided_grad_cam, &self.input, &Never)?;
        let classes = vec![self.classes[..1].to_vec(); self.input.size()[0] as usize];
        let rows = forward.reverse(&classes, &Never)?.fuse()?;
        let map = rows.into_iter().flatten().next().and_then(|maps| maps.guided_grad_cam).ok_or("no map")?;
        Ok(map.f_unsqueeze(0)?)
    }

    pub fn seconds(&mut self, run: &str) -> Result<f64> {
        thread::sleep(PAUSE);
        let first = self.run(run)?;
        Ok(if first > LONG { first } else { self.run(run)? })
    }

    fn run(&mut self, run: &str) -> Result<f64> {
        let Ours { explainer, input, classes, grad_cam, guided_grad_cam, in_bfloat16 } = self;
        let (method, count) = match run {
            "forward" => (&*guided_grad_cam, 0),
            "grad-cam" => (&*grad_cam, 1),
            "explain" => (&*guided_grad_cam, 1),
            "explain-5" => (&*guided_grad_cam, 5),
            "forward-bf16" => (&*in_bfloat16, 0),
            "explain-bf16" => (&*in_bfloat16, 1),
            "explain-5-bf16" => (&*in_bfloat16, 5),
            _ => return Err(format!("there is no run {run}").into()),
        };
        let start = Instant::now();
        let forward = explainer.forward(method, input, &Never)?;
        if count > 0 {
            back(forward, &classes[..count], input.size()[0] as usize)?;
        }
        Ok(start.elapsed().as_secs_f64())
    }
}

fn back(forward: Forward<'_>, classes: &[u32], rows: usize) -> Result<()> {
    forward.reverse(&vec![classes.to_vec(); rows], &Never)?.fuse()?;
    Ok(())
}
