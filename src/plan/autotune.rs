//! Chooses the fastest of several kernels for one operation by timing them.

use std::fmt;
use std::time::{Duration, Instant};

use tch::{Kind, Tensor};

use crate::plan::tuning::{has_time, note_untuned, spending};
use crate::plan::{KernelChoice, Timing};
use crate::process;
use crate::torch::{OperatorError, threads};

/// Timed runs per kernel after one warm-up run; `EXTRA_TRIALS` more unless one kernel is `CLEARLY` times faster.
const TRIALS: usize = 3;
const EXTRA_TRIALS: usize = 5;
const CLEARLY: f64 = 1.15;
/// Assumed memory bandwidth for weights.
const BYTES_PER_SECOND: f64 = 30e9;
/// What a call of oneDNN takes longer in a network than in a trial: the code around its kernels, in ATen and in oneDNN,
/// is large and runs on one thread.
const ONEDNN_SECONDS: f64 = 40e-6;
/// Times were disturbed if this thread waited for a processor for more than this part of them.
const DISTURBANCE: f64 = 0.05;
/// Disturbed choices of one operation; the last of them is kept, since the machine may never be quiet.
const MAX_DISTURBED: u8 = 3;

/// A kernel that may be chosen. Its weights are packed when its turn comes.
pub(in crate::plan) struct Candidate<'a, T> {
    /// Lower bound on the bytes of its packed weights.
    min_bytes: usize,
    pack: Box<dyn FnOnce() -> Result<Option<T>, OperatorError> + 'a>,
}

impl<'a, T: 'a> Candidate<'a, T> {
    /// `pack` returns `None` where the kernel does not suit.
    pub fn new(pack: impl FnOnce() -> Result<Option<T>, OperatorError> + 'a) -> Self {
        Self::of_bytes(0, pack)
    }

    /// A candidate whose packed weights take at least `min_bytes`.
    pub fn of_bytes(min_bytes: usize, pack: impl FnOnce() -> Result<Option<T>, OperatorError> + 'a) -> Self {
        Candidate { min_bytes, pack: Box::new(pack) }
    }

    pub fn pack(self) -> Result<Option<T>, OperatorError> {
        (self.pack)()
    }

    /// The same candidate, wrapped into another type.
    pub fn map<U: 'a>(self, into: impl FnOnce(T) -> U + 'a) -> Candidate<'a, U> {
        Candidate::of_bytes(self.min_bytes, move || Ok((self.pack)()?.map(into)))
    }
}

/// What a kernel finds in the caches in a trial and has to fetch from memory in a whole network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::plan) struct Fetched {
    /// Of weights packed for this kernel alone. A kernel that reads weights packed for another one pays nothing,
    /// because it takes no memory of its own.
    pub bytes: usize,
    /// Whether it is one of oneDNN's.
    pub is_onednn: bool,
}

impl Fetched {
    fn seconds(self) -> f64 {
        of_memory(self.bytes) + if self.is_onednn { ONEDNN_SECONDS } else { 0.0 }
    }
}

fn of_memory(bytes: usize) -> f64 {
    bytes as f64 / BYTES_PER_SECOND
}

/// A kernel, and how sure it is the fastest.
#[derive(Debug, Clone, Copy)]
pub(in crate::plan) struct Chosen<T> {
    kernel: T,
    standing: Standing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It is kept.
    Final,
    /// It may be timed again. `disturbed`: how often it was timed while other programs held the processor.
    Open { disturbed: u8 },
}

impl<T> Chosen<T> {
    /// The only kernel that comes into question.
    pub fn sole(kernel: T) -> Self {
        Chosen { kernel, standing: Standing::Final }
    }

    pub fn kernel(&self) -> &T {
        &self.kernel
    }

    /// The kernel, to be run.
    pub fn used(&self) -> &T {
        if self.standing != Standing::Final {
            note_untuned();
        }
        &self.kernel
    }

    /// Whether to choose again now.
    pub fn is_due(&self) -> bool {
        self.standing != Standing::Final && has_time()
    }

    /// What was made of the kernel, with its standing.
    pub fn try_map<U, E>(&self, into: impl FnOnce(&T) -> Result<U, E>) -> Result<Chosen<U>, E> {
        Ok(Chosen { kernel: into(&self.kernel)?, standing: self.standing })
    }

    fn disturbed(&self) -> u8 {
        if let Standing::Open { disturbed } = self.standing { disturbed } else { 0 }
    }
}

/// An operation whose kernel is to be chosen.
pub(in crate::plan) struct Task<'a> {
    /// For errors.
    pub operator: &'static str,
    /// All that its kernels' times depend on, except the processor and the number of threads.
    pub shapes: fmt::Arguments<'a>,
    pub choice: &'a KernelChoice,
}

/// The fastest of `candidates`. `fetched` is what a kernel has to fetch; `prepared` returns a closure that runs it. At
/// most two kernels are packed at once: the fastest so far and the one that is timed against it. `before` is what was
/// chosen before and [is due](Chosen::is_due).
///
/// What is known is not timed, and without the [time](Timing) for it the first kernel that suits is returned. What was
/// found while other programs held the processor is not remembered, and stays due for a few more times.
///
/// # Errors
/// What packing or a run says; [`OperatorError::Argument`] when no candidate suits.
pub(in crate::plan) fn autotune<T, R>(
    task: &Task<'_>,
    before: Option<Chosen<T>>,
    candidates: Vec<Candidate<T>>,
    fetched: impl Fn(&T) -> Fetched,
    prepared: impl Fn(&T) -> Result<R, OperatorError>,
) -> Result<Chosen<T>, OperatorError>
where
    R: Fn() -> Result<Tensor, OperatorError>,
{
    let mut candidates: Vec<Option<Candidate<T>>> = candidates.into_iter().map(Some).collect();
    let KernelChoice { timing, known } = task.choice;
    let operation = format!("{}, {}, {} threads", task.operator, task.shapes, threads::model_threads());
    let disturbed = before.as_ref().map_or(0, Chosen::disturbed);
    drop(before);
    let known_index = if *timing == Timing::Never { None } else { known.fastest(&operation) };
    if let Some(candidate) = known_index.and_then(|index| candidates.get_mut(index)?.take())
        && let Some(kernel) = candidate.pack()?
    {
        return Ok(Chosen::sole(kernel));
    }
    let times = match timing {
        Timing::AtFirstRun => true,
        Timing::WhenTuning => has_time(),
        Timing::Never => false,
    };
    let mut candidates = candidates.into_iter().enumerate().filter_map(|(index, one)| Some((index, one?)));
    if !times {
        let kernel = candidates.find_map(|(_, candidate)| candidate.pack().transpose()).transpose()?;
        let standing = if *timing == Timing::Never { Standing::Final } else { Standing::Open { disturbed } };
        return kernel.map(|kernel| Chosen { kernel, standing }).ok_or_else(|| task.suits_no_kernel());
    }
    let (fastest, is_undisturbed) = undisturbed(|| spending(|| fastest(candidates, fetched, prepared)));
    // Of rejected kernels: later weights seldom fit into it.
    process::release_memory();
    let (index, kernel) = fastest?.ok_or_else(|| task.suits_no_kernel())?;
    if is_undisturbed {
        known.insert(operation, index);
    }
    let is_final = is_undisturbed || *timing == Timing::AtFirstRun || disturbed + 1 >= MAX_DISTURBED;
    let standing = if is_final { Standing::Final } else { Standing::Open { disturbed: disturbed + 1 } };
    Ok(Chosen { kernel, standing })
}

impl Task<'_> {
    fn suits_no_kernel(&self) -> OperatorError {
        OperatorError::Argument {
            operator: self.operator.into(),
            argument: "weight".into(),
            problem: "suits no kernel".into(),
        }
    }
}

/// The fastest candidate and its index, by time.
fn fastest<'a, T: 'a, R>(
    candidates: impl Iterator<Item = (usize, Candidate<'a, T>)>,
    fetched: impl Fn(&T) -> Fetched,
    prepared: impl Fn(&T) -> Result<R, OperatorError>,
) -> Result<Option<(usize, T)>, OperatorError>
where
    R: Fn() -> Result<Tensor, OperatorError>,
{
    let cost = |kernel: &T, time: Duration| time.as_secs_f64() + fetched(kernel).seconds();
    // With its shortest time, once it was timed against another kernel.
    let mut best: Option<(usize, T, Option<Duration>)> = None;
    for (index, candidate) in candidates {
        if let Some((_, kernel, Some(time))) = &best
            && of_memory(candidate.min_bytes) >= cost(kernel, *time)
        {
            continue;
        }
        let Some(kernel) = candidate.pack()? else { continue };
        let Some((best_index, best_kernel, known)) = best.take() else {
            best = Some((index, kernel, None));
            continue;
        };
        let [of_champion, of_kernel] = least_times(&[prepared(&best_kernel)?, prepared(&kernel)?])?;
        let of_champion = known.map_or(of_champion, |known| known.min(of_champion));
        let is_faster = cost(&kernel, of_kernel) < cost(&best_kernel, of_champion);
        best = Some(if is_faster {
            (index, kernel, Some(of_kernel))
        } else {
            (best_index, best_kernel, Some(of_champion))
        });
    }
    Ok(best.map(|(index, kernel, _)| (index, kernel)))
}

/// Runs `run`, and tells whether this thread had the processor whenever it wanted.
pub(in crate::plan) fn undisturbed<T>(run: impl FnOnce() -> T) -> (T, bool) {
    let (waited, began) = (process::waited_for_processor(), Instant::now());
    let result = run();
    let waited = process::waited_for_processor().saturating_sub(waited);
    (result, waited <= began.elapsed().mul_f64(DISTURBANCE))
}

/// The bytes of a tensor's elements.
pub(in crate::plan) fn bytes(tensor: &Tensor) -> usize {
    tensor.numel() * tensor.f_kind().map_or(0, Kind::elt_size_in_bytes)
}

/// Whether a weight has no infinite and no NaN element.
pub(in crate::plan) fn is_finite(weight: &Tensor) -> Result<bool, OperatorError> {
    let (least, most) = weight.f_aminmax(None, false)?;
    Ok(least.f_double_value(&[])?.is_finite() && most.f_double_value(&[])?.is_finite())
}

/// A bias in float32, as camlens's own kernels take it.
pub(in crate::plan) fn float_bias(bias: Option<&Tensor>) -> Result<Option<Tensor>, OperatorError> {
    Ok(bias.map(|bias| bias.f_to_kind(Kind::Float)).transpose()?)
}

/// The shortest of several times for each of two kernels: other load on the machine only adds to a time. The kernels
/// take turns, so that such load slows both.
fn least_times<R>(runs: &[R; 2]) -> Result<[Duration; 2], OperatorError>
where
    R: Fn() -> Result<Tensor, OperatorError>,
{
    for run in runs {
        drop(run()?);
    }
    let mut least = [Duration::MAX; 2];
    for trial in 0..TRIALS + EXTRA_TRIALS {
        let [less, more] = if least[0] < least[1] { least } else { [least[1], least[0]] };
        if trial == TRIALS && more > less.mul_f64(CLEARLY) {
            break;
        }
        for (run, least) in runs.iter().zip(&mut least) {
            let start = Instant::now();
            let result = run()?;
            *least = start.elapsed().min(*least);
            drop(result);
        }
    }
    Ok(least)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::thread::sleep;

    use super::*;
    use crate::plan::tuning::{take_untuned, tuning};

    fn task(choice: &KernelChoice) -> Task<'_> {
        Task { operator: "linear", shapes: format_args!("1x2"), choice }
    }

    fn bytes_alone(bytes: usize) -> Fetched {
        Fetched { bytes, is_onednn: false }
    }

    /// Kernels with these milliseconds and bytes.
    struct Kernels<'a> {
        of: &'a [(u64, usize)],
        packed: RefCell<Vec<usize>>,
    }

    impl<'a> Kernels<'a> {
        fn new(of: &'a [(u64, usize)]) -> Self {
            Kernels { of, packed: RefCell::default() }
        }

        /// Chooses one, by its index.
        fn choose(&self, choice: &KernelChoice, before: Option<Chosen<usize>>) -> Chosen<usize> {
            let candidate = |(index, &(_, bytes)): (usize, &(u64, usize))| {
                Candidate::of_bytes(bytes, move || {
                    self.packed.borrow_mut().push(index);
                    Ok(Some(index))
                })
            };
            let candidates = self.of.iter().enumerate().map(candidate).collect();
            let run = |&index: &usize| {
                let time = Duration::from_millis(self.of[index].0);
                Ok(move || {
                    sleep(time);
                    Ok(Tensor::new())
                })
            };
            autotune(&task(choice), before, candidates, |&index| bytes_alone(self.of[index].1), run).unwrap()
        }

        /// The indices of those that were packed since the last call.
        fn packed(&self) -> Vec<usize> {
            self.packed.take()
        }
    }

    fn index_of_fastest(kernels: &[(u64, usize)]) -> usize {
        *Kernels::new(kernels).choose(&KernelChoice::default(), None).used()
    }

    #[test]
    fn less_time_wins_after_the_cost_of_memory() {
        assert_eq!(index_of_fastest(&[(40, 9), (1, 9), (40, 9)]), 1);
        assert_eq!(index_of_fastest(&[(40, 9), (1, 36)]), 1);
        assert_eq!(index_of_fastest(&[(40, 9), (40, 9), (1, 9)]), 2);
        // Less time, but weights that take a tenth of a second to load.
        assert_eq!(index_of_fastest(&[(50, 9), (20, 3_000_000_000)]), 0);
        assert_eq!(index_of_fastest(&[(500, 9)]), 0);
    }

    #[test]
    fn what_would_take_longer_to_come_from_memory_is_not_packed() {
        let kernels = Kernels::new(&[(20, 9), (1, 9), (0, 3_000_000_000), (0, 9)]);
        kernels.choose(&KernelChoice::default(), None);
        assert_eq!(kernels.packed(), [0, 1, 3]);
    }

    #[test]
    fn without_timing_the_first_kernel_is_chosen_and_no_other_is_packed() {
        let choice = Timing::Never.into();
        let kernels = Kernels::new(&[(40, 9), (1, 9)]);
        let chosen = kernels.choose(&choice, None);
        assert_eq!((*chosen.used(), kernels.packed()), (0, vec![0]));
        assert!(!take_untuned() && !tuning(Duration::MAX, || chosen.is_due()), "it is final");
    }

    #[test]
    fn kernels_are_timed_when_there_is_time_and_the_fastest_is_known_from_then_on() {
        let choice = Timing::WhenTuning.into();
        let kernels = Kernels::new(&[(40, 9), (1, 9)]);
        let chosen = kernels.choose(&choice, None);
        assert!(!chosen.is_due());
        assert_eq!((*chosen.used(), kernels.packed(), take_untuned()), (0, vec![0], true));
        tuning(Duration::from_millis(1), || {
            assert!(chosen.is_due());
            // Other programs may hold the processor meanwhile, but not always.
            let tuned = (0..100).map(|_| kernels.choose(&choice, Some(chosen)));
            let tuned = tuned.map(|tuned| (*tuned.used(), take_untuned())).find(|(_, is_untuned)| !is_untuned);
            assert_eq!(tuned, Some((1, false)));
        });
        kernels.packed();
        let known = kernels.choose(&choice, None);
        assert_eq!((*known.used(), kernels.packed(), take_untuned()), (1, vec![1], false));
        // Never means never: the same at every start.
        let never = KernelChoice { timing: Timing::Never, ..choice };
        assert_eq!(*kernels.choose(&never, None).used(), 0);
    }

    #[test]
    fn what_is_remembered_and_does_not_suit_is_chosen_anew() {
        let choice = KernelChoice::default();
        Kernels::new(&[(40, 9), (1, 9), (40, 9)]).choose(&choice, None);
        assert_eq!(*Kernels::new(&[(1, 9)]).choose(&choice, None).used(), 0, "fewer candidates");
    }

    #[test]
    fn a_machine_that_is_never_quiet_gets_its_fastest_kernel_too() {
        let mut chosen = Chosen { kernel: 0, standing: Standing::Open { disturbed: MAX_DISTURBED - 1 } };
        tuning(Duration::MAX, || {
            assert!(chosen.is_due());
            chosen = Kernels::new(&[(40, 9), (1, 9)]).choose(&Timing::WhenTuning.into(), Some(chosen));
            assert!(!chosen.is_due());
        });
        assert_eq!(*chosen.used(), 1);
    }

    #[test]
    fn kernels_that_do_not_suit_are_skipped() {
        let candidates = || {
            let none = || Candidate::new(|| Ok(None));
            vec![none(), Candidate::new(|| Ok(Some(7))).map(|kernel| kernel + 1), none()]
        };
        let never = |_: &i32| -> Result<fn() -> Result<Tensor, OperatorError>, OperatorError> {
            panic!("one kernel alone is not tried")
        };
        for timing in [Timing::AtFirstRun, Timing::WhenTuning, Timing::Never] {
            let choice = timing.into();
            assert_eq!(*autotune(&task(&choice), None, candidates(), |_| bytes_alone(1), never).unwrap().used(), 8);
        }
        take_untuned();
    }

    #[test]
    fn no_kernel_at_all_is_an_error() {
        for timing in [Timing::AtFirstRun, Timing::Never] {
            let choice = timing.into();
            let none =
                autotune(&task(&choice), None, Vec::new(), |_: &i32| bytes_alone(1), |_| Ok(|| Ok(Tensor::new())))
                    .map(|c| *c.used());
            assert!(none.unwrap_err().to_string().contains("suits no kernel"));
        }
    }
}
