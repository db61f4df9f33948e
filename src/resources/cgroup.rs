//! The limits of a process's cgroups. https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/.

use std::fs;
use std::path::{Path, PathBuf};

use procfs::process::MountInfos;
use procfs::{FromRead, ProcessCGroups};

/// The folders of a process's cgroups, from its own to the outermost that is visible.
#[derive(Default)]
pub(super) struct Cgroup {
    /// Version 2: one hierarchy for all.
    unified: Vec<PathBuf>,
    /// Version 1: a hierarchy for each kind.
    processors: Vec<PathBuf>,
    memory: Vec<PathBuf>,
}

impl Cgroup {
    pub(super) fn of(root: &Path) -> Self {
        let process = root.join("proc/self");
        let memberships = ProcessCGroups::from_file(process.join("cgroup"));
        let mounts = MountInfos::from_file(process.join("mountinfo"));
        let (Ok(memberships), Ok(mounts)) = (memberships, mounts) else { return Cgroup::default() };
        let folders = |controller: Option<&str>| {
            let membership = memberships.0.iter().find(|membership| match controller {
                None => membership.hierarchy == 0,
                Some(controller) => membership.controllers.iter().any(|found| found == controller),
            });
            let mount = mounts.0.iter().find(|mount| match controller {
                None => mount.fs_type == "cgroup2",
                Some(controller) => mount.fs_type == "cgroup" && mount.super_options.contains_key(controller),
            });
            let Some((membership, mount)) = membership.zip(mount) else { return Vec::new() };
            let top = root.join(mount.mount_point.strip_prefix("/").unwrap_or(&mount.mount_point));
            // A container often sees its own group alone, mounted as if it were the top.
            let path = Path::new(&membership.pathname);
            let below = path.strip_prefix(&mount.root).ok().filter(|path| !path.starts_with(".."));
            let own = below.map_or_else(|| top.clone(), |path| top.join(path));
            own.ancestors().take_while(|folder| folder.starts_with(&top)).map(Path::to_owned).collect()
        };
        Cgroup { unified: folders(None), processors: folders(Some("cpu")), memory: folders(Some("memory")) }
    }

    /// The smallest quota of all groups, in processors.
    pub(super) fn quota(&self) -> Option<f64> {
        let unified = self.unified.iter().filter_map(|folder| {
            let text = fs::read_to_string(folder.join("cpu.max")).ok()?;
            let (quota, period) = text.trim().split_once(' ')?;
            share(quota.parse().ok()?, period.parse().ok()?)
        });
        let separate = self
            .processors
            .iter()
            .filter_map(|folder| share(number(folder, "cpu.cfs_quota_us")?, number(folder, "cpu.cfs_period_us")?));
        unified.chain(separate).min_by(f64::total_cmp)
    }

    /// The smallest limit of all groups, in bytes.
    pub(super) fn memory_limit(&self) -> Option<u64> {
        let unified = self.unified.iter().filter_map(|folder| number(folder, "memory.max"));
        let separate = self.memory.iter().filter_map(|folder| number(folder, "memory.limit_in_bytes"));
        unified.chain(separate).filter_map(|limit| u64::try_from(limit).ok()).min()
    }
}

/// The number in a file; `None` where there is no limit, which is written as `max` or -1.
fn number(folder: &Path, file: &str) -> Option<i64> {
    fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok()
}

fn share(quota: i64, period: i64) -> Option<f64> {
    (quota > 0 && period > 0).then(|| quota as f64 / period as f64)
}
