use std::fs;

use super::*;

const SETTLE: Duration = Duration::from_secs(1);

/// A repository of one model, `net`, in a folder, and a clock that the test turns.
struct Scene {
    folder: tempfile::TempDir,
    follower: Follower,
    now: Instant,
}

impl Scene {
    fn new(follows: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Scene { folder, follower: Follower::new(follows, SETTLE), now: Instant::now() }
    }

    fn following() -> Self {
        Self::new(true)
    }

    /// Writes a version's file, or a longer one.
    fn write(&self, version: i64, text: &str) {
        let directory = self.folder.path().join(version.to_string());
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("model.onnx"), text).unwrap();
    }

    fn remove(&self, version: i64) {
        fs::remove_dir_all(self.folder.path().join(version.to_string())).unwrap();
    }

    fn found(&self) -> Look {
        let version = |entry: fs::DirEntry| -> i64 { entry.file_name().to_str().unwrap().parse().unwrap() };
        let found = |entry: fs::DirEntry| {
            let path = entry.path();
            let stamp = Stamp::of(&path).unwrap();
            (net(version(entry)), Found { path, stamp })
        };
        let found = fs::read_dir(self.folder.path()).unwrap().map(|entry| found(entry.unwrap())).collect();
        Look { found, ..Look::default() }
    }

    /// Looks at the folder some time later.
    fn look(&mut self) {
        self.now += SETTLE;
        let found = self.found();
        self.follower.observe(found, self.now);
    }

    fn settle(&mut self) {
        self.look();
        self.look();
    }

    fn task(&self) -> Option<Task> {
        self.follower.task(self.now)
    }

    /// The version that is to be loaded now, with its stamp.
    fn load(&self) -> (i64, Stamp) {
        match self.task() {
            Some(Task::Load { key, found, .. }) => (key.1, found.stamp),
            other => panic!("a version is to be loaded, not {other:?}"),
        }
    }

    /// Carries out every task: versions are loaded but for those in `broken`. Returns what was done.
    fn carry_out(&mut self, broken: &[i64]) -> Vec<String> {
        let mut done = Vec::new();
        while let Some(task) = self.task() {
            assert!(done.len() < 20, "it does not end: {done:?}");
            match task {
                Task::Load { key, found, .. } if broken.contains(&key.1) => {
                    self.follower.failed(&key, found.stamp, "it is broken".to_owned(), None);
                    done.push(format!("failed {}", key.1));
                }
                Task::Load { key, found, .. } => {
                    let contents = super::super::contents(&found.path).unwrap();
                    self.follower.loaded(&key, found.stamp, contents);
                    done.push(format!("loaded {}", key.1));
                }
                Task::Retire { key } => {
                    self.follower.retired(&key);
                    done.push(format!("retired {}", key.1));
                }
            }
        }
        done
    }

    fn state(&self, version: i64) -> Option<State> {
        self.follower.state(&net(version))
    }
}

fn net(version: i64) -> VersionKey {
    ("net".to_owned(), version)
}

#[test]
fn a_version_is_loaded_when_two_looks_have_seen_the_same_files() {
    let mut scene = Scene::following();
    scene.write(1, "a");
    scene.look();
    assert_eq!((scene.task(), scene.state(1)), (None, Some(State::Pending)));
    scene.write(1, "ab");
    scene.look();
    assert_eq!(scene.task(), None, "it is being written");
    let found = scene.found();
    scene.follower.observe(found, scene.now);
    assert_eq!(scene.task(), None, "two looks at the same moment are one");
    scene.look();
    assert_eq!(scene.carry_out(&[]), ["loaded 1"]);
    assert_eq!(scene.state(1), Some(State::Served));
    scene.settle();
    assert_eq!(scene.task(), None);
}

#[test]
fn files_that_change_while_they_are_read_have_to_rest_again() {
    let mut scene = Scene::following();
    scene.write(1, "a");
    scene.settle();
    scene.load();
    scene.follower.changing(&net(1), scene.now);
    assert_eq!(scene.task(), None);
    scene.look();
    assert_eq!(scene.task(), None);
    scene.look();
    assert_eq!(scene.carry_out(&[]), ["loaded 1"]);
}

#[test]
fn changed_files_are_loaded_once_and_equal_contents_not_at_all() {
    let mut scene = Scene::following();
    scene.write(1, "a");
    scene.settle();
    scene.carry_out(&[]);
    scene.write(1, "ab");
    scene.look();
    assert_eq!((scene.task(), scene.state(1)), (None, Some(State::Pending)));
    scene.look();
    let Some(Task::Load { key, found, served }) = scene.task() else { panic!("it is to be loaded") };
    assert!(served.is_some(), "the caller can tell that nothing has changed");
    scene.follower.unchanged(&key, found.stamp);
    assert_eq!((scene.task(), scene.state(1)), (None, Some(State::Served)));
    scene.settle();
    assert_eq!(scene.task(), None);
}

#[test]
fn the_old_version_is_retired_when_the_new_one_serves() {
    let mut scene = Scene::following();
    scene.write(1, "a");
    scene.settle();
    scene.carry_out(&[]);
    scene.remove(1);
    scene.write(2, "b");
    scene.look();
    assert_eq!(scene.task(), None);
    scene.look();
    assert_eq!(scene.load().0, 2);
    assert_eq!(scene.carry_out(&[]), ["loaded 2", "retired 1"]);
    assert_eq!((scene.state(1), scene.state(2)), (None, Some(State::Served)));
}

#[test]
fn a_broken_new_version_leaves_the_old_one_serving_and_is_tried_again_when_its_files_change() {
    let mut scene = Scene::following();
    scene.write(1, "a");
    scene.settle();
    scene.carry_out(&[]);
    scene.remove(1);
    scene.write(2, "b");
    scene.settle();
    assert_eq!(scene.carry_out(&[2]), ["failed 2"]);
    assert_eq!((scene.state(1), scene.state(2)), (Some(State::Served), Some(State::Failed)));
    assert_eq!(scene.follower.failure(&net(2)), Some("it is broken"));
    scene.settle();
    assert_eq!(scene.task(), None, "it is not tried again and again");
    scene.write(2, "better");
    scene.settle();
    assert_eq!(scene.carry_out(&[]), ["loaded 2", "retired 1"]);
    assert_eq!(scene.follower.failure(&net(2)), None);
}

#[test]
fn the_same_version_with_broken_files_goes_on_with_the_old_ones() {
    let mut scene = Scene::following();
    scene.write(1, "a");
    scene.settle();
    scene.carry_out(&[]);
    scene.write(1, "broken");
    scene.settle();
    assert_eq!(scene.carry_out(&[1]), ["failed 1"]);
    assert_eq!(scene.state(1), Some(State::Failed));
    scene.remove(1);
    scene.settle();
    assert_eq!(scene.carry_out(&[]), ["retired 1"], "it was served until now");
}

#[test]
fn a_failure_that_may_pass_is_tried_again_later() {
    let mut scene = Scene::following();
    scene.write(1, "a");
    scene.settle();
    let (_, stamp) = scene.load();
    scene.follower.failed(&net(1), stamp, "no memory".to_owned(), Some(scene.now + 3 * SETTLE));
    assert_eq!(scene.task(), None);
    scene.settle();
    assert_eq!(scene.task(), None);
    scene.look();
    assert_eq!(scene.carry_out(&[]), ["loaded 1"]);
}

#[test]
fn a_version_that_is_gone_for_one_look_stays() {
    let mut scene = Scene::following();
    scene.write(1, "a");
    scene.settle();
    scene.carry_out(&[]);
    scene.remove(1);
    scene.look();
    assert_eq!(scene.task(), None);
    scene.write(1, "a");
    scene.look();
    assert_eq!(scene.task(), None);
    scene.remove(1);
    scene.settle();
    assert_eq!(scene.carry_out(&[]), ["retired 1"]);
    assert_eq!(scene.follower.states().count(), 0);
}

#[test]
fn a_version_beside_a_broken_one_is_retired_if_a_third_one_serves() {
    let mut scene = Scene::following();
    for version in [1, 2, 3] {
        scene.write(version, "a");
    }
    scene.settle();
    assert_eq!(scene.carry_out(&[3]), ["failed 3", "loaded 2", "loaded 1"], "the newest first");
    scene.remove(1);
    scene.settle();
    assert_eq!(scene.carry_out(&[]), ["retired 1"]);
    scene.remove(2);
    scene.settle();
    assert_eq!(scene.carry_out(&[]), Vec::<String>::new(), "nothing else serves");
}

#[test]
fn a_version_stays_while_something_of_its_model_cannot_be_read() {
    let mut scene = Scene::following();
    scene.write(1, "a");
    scene.settle();
    scene.carry_out(&[]);
    for _ in 0..2 {
        scene.now += SETTLE;
        scene.follower.observe(Look { refused: ["net".to_owned()].into(), ..Look::default() }, scene.now);
        assert_eq!(scene.task(), None);
    }
    scene.remove(1);
    scene.look();
    assert_eq!(scene.carry_out(&[]), ["retired 1"]);
}

#[test]
fn what_is_unloaded_stays_so_until_it_is_ordered() {
    let mut scene = Scene::following();
    scene.write(1, "a");
    scene.settle();
    scene.carry_out(&[]);
    assert_eq!(scene.follower.order("net", Some(1), Order::Unload), [net(1)]);
    assert_eq!(scene.carry_out(&[]), ["retired 1"]);
    scene.write(1, "ab");
    scene.settle();
    assert_eq!((scene.task(), scene.state(1)), (None, Some(State::Unloaded)));
    assert_eq!(scene.follower.order("net", None, Order::Load), [net(1)]);
    assert_eq!(scene.carry_out(&[]), ["loaded 1"]);
    assert_eq!(scene.follower.order("net", Some(2), Order::Load), []);
    assert_eq!(scene.follower.order("other", None, Order::Load), []);
}

#[test]
fn a_reload_loads_files_that_have_not_changed() {
    let mut scene = Scene::following();
    scene.write(1, "a");
    scene.settle();
    scene.carry_out(&[]);
    scene.follower.order("net", None, Order::Load);
    assert_eq!(scene.carry_out(&[]), Vec::<String>::new());
    scene.follower.order("net", None, Order::Reload);
    assert!(matches!(scene.task(), Some(Task::Load { served: None, .. })));
    assert_eq!(scene.carry_out(&[]), ["loaded 1"]);
}

#[test]
fn what_has_left_memory_comes_back_when_it_is_ordered() {
    let mut scene = Scene::following();
    scene.write(1, "a");
    scene.settle();
    scene.carry_out(&[]);
    scene.follower.evicted(&net(1));
    scene.settle();
    assert_eq!((scene.task(), scene.state(1)), (None, Some(State::Evicted)));
    scene.follower.order("net", Some(1), Order::Load);
    assert!(matches!(scene.task(), Some(Task::Load { served: None, .. })), "it has to be loaded");
    assert_eq!(scene.carry_out(&[]), ["loaded 1"]);
    assert_eq!(scene.state(1), Some(State::Served));
}

#[test]
fn without_following_only_what_is_ordered_happens() {
    let mut scene = Scene::new(false);
    scene.write(1, "a");
    let found = scene.found();
    scene.follower.begin(found, scene.now);
    assert_eq!(scene.carry_out(&[]), ["loaded 1"], "what is there at the start");
    scene.remove(1);
    scene.write(2, "b");
    scene.settle();
    assert_eq!((scene.task(), scene.state(2)), (None, Some(State::Unloaded)));
    scene.follower.order("net", None, Order::Load);
    assert_eq!(scene.carry_out(&[2]), ["failed 2"]);
    assert_eq!(scene.state(1), Some(State::Served));
    let concerned = scene.follower.order("net", None, Order::Load);
    assert_eq!(scene.carry_out(&[]), ["loaded 2", "retired 1"]);
    scene.follower.fulfilled(&concerned);
    scene.write(2, "changed");
    scene.settle();
    assert_eq!((scene.task(), scene.state(2)), (None, Some(State::Served)), "the order was for what was there");
}
