use std::fs;

use tempfile::TempDir;

use super::*;

/// A machine of 8 processors and 32 GiB whose files below its root are these.
fn machine(cgroup: &str, mounts: &str, files: &[(&str, &str)]) -> (TempDir, Machine) {
    let root = TempDir::new().unwrap();
    let write = |path: &str, content: &str| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    };
    write(
        "proc/self/status",
        "Name:\tcamlens\nVmRSS:\t   2048 kB\nCpus_allowed:\t00000000,000000ff\nCpus_allowed_list:\t0-7\n",
    );
    write("proc/meminfo", "MemTotal:       33554432 kB\nMemFree:         7888396 kB\n");
    write("proc/self/cgroup", cgroup);
    write("proc/self/mountinfo", mounts);
    files.iter().for_each(|(path, content)| write(path, content));
    let machine = Machine::at(root.path());
    (root, machine)
}

const V2: &str =
    "29 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
const V1: &str = "\
33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid,nodev,noexec,relatime shared:12 - cgroup cgroup rw,cpu,cpuacct
37 30 0:33 / /sys/fs/cgroup/memory rw,nosuid,nodev,noexec,relatime shared:16 - cgroup cgroup rw,memory
";

#[test]
fn without_limits_everything_may_be_used() {
    let (_root, machine) = machine("0::/\n", V2, &[]);
    let found = machine.resources();
    assert_eq!(found, Resources { processors: 8, quota: None, memory: 32 << 30, memory_limit: None });
    assert_eq!((found.threads(), found.memory(), machine.resident()), (8, 32 << 30, 2 << 20));
    let nothing = Machine::at("/nowhere").resources();
    assert_eq!((nothing.threads(), nothing.memory()), (1, u64::MAX));
}

#[test]
fn a_container_of_version_2_sees_its_own_group_as_the_top() {
    let (_root, machine) = machine(
        "0::/\n",
        V2,
        &[("sys/fs/cgroup/cpu.max", "150000 100000\n"), ("sys/fs/cgroup/memory.max", "536870912\n")],
    );
    let found = machine.resources();
    assert_eq!((found.quota, found.memory_limit), (Some(1.5), Some(512 << 20)));
    assert_eq!((found.threads(), found.memory()), (2, 512 << 20));
}

#[test]
fn the_tightest_of_the_groups_around_it_counts() {
    let pod = "sys/fs/cgroup/kubepods.slice/kubepods-pod1.slice";
    let (_root, machine) = machine(
        "0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-1.scope\n",
        V2,
        &[
            (&format!("{pod}/cri-containerd-1.scope/cpu.max"), "max 100000\n"),
            (&format!("{pod}/cri-containerd-1.scope/memory.max"), "2147483648\n"),
            (&format!("{pod}/cpu.max"), "50000 100000\n"),
            (&format!("{pod}/memory.max"), "1073741824\n"),
            ("sys/fs/cgroup/kubepods.slice/cpu.max", "700000 100000\n"),
            ("sys/fs/cgroup/kubepods.slice/memory.max", "max\n"),
        ],
    );
    let found = machine.resources();
    assert_eq!((found.quota, found.memory_limit), (Some(0.5), Some(1 << 30)));
    assert_eq!(found.threads(), 1, "half a processor is one thread");
}

#[test]
fn version_1_has_a_hierarchy_for_each_kind() {
    let cgroup = "5:memory:/jobs/a\n4:cpu,cpuacct:/jobs/b\n1:name=systemd:/\n";
    let (_root, machine) = machine(
        cgroup,
        V1,
        &[
            ("sys/fs/cgroup/cpu,cpuacct/jobs/b/cpu.cfs_quota_us", "-1\n"),
            ("sys/fs/cgroup/cpu,cpuacct/jobs/b/cpu.cfs_period_us", "100000\n"),
            ("sys/fs/cgroup/cpu,cpuacct/jobs/cpu.cfs_quota_us", "250000\n"),
            ("sys/fs/cgroup/cpu,cpuacct/jobs/cpu.cfs_period_us", "100000\n"),
            ("sys/fs/cgroup/memory/jobs/a/memory.limit_in_bytes", "805306368\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ],
    );
    let found = machine.resources();
    assert_eq!((found.quota, found.threads()), (Some(2.5), 3));
    assert_eq!(found.memory_limit, Some(768 << 20));
}

#[test]
fn version_1_without_a_limit_says_so_by_a_huge_number() {
    let (_root, machine) =
        machine("5:memory:/\n", V1, &[("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")]);
    assert_eq!(machine.resources().memory_limit, None);
}

/// Docker without a namespace of its own: the path is the host's, and the mount shows that folder alone.
#[test]
fn a_mount_may_begin_at_the_container() {
    let mounts = "33 30 0:29 /docker/abc /sys/fs/cgroup/memory ro,nosuid - cgroup cgroup rw,memory\n";
    let (_root, machine) =
        machine("5:memory:/docker/abc\n", mounts, &[("sys/fs/cgroup/memory/memory.limit_in_bytes", "268435456\n")]);
    assert_eq!(machine.resources().memory_limit, Some(256 << 20));
    // A process that was moved out of what it sees.
    let (_root, machine) = self::machine("0::/../other\n", V2, &[("sys/fs/cgroup/cpu.max", "100000 100000\n")]);
    assert_eq!(machine.resources().quota, Some(1.0));
}

#[test]
fn a_limit_that_changes_is_read_again() {
    let (root, machine) = machine("0::/\n", V2, &[("sys/fs/cgroup/cpu.max", "max 100000\n")]);
    assert_eq!(machine.resources().threads(), 8);
    fs::write(root.path().join("sys/fs/cgroup/cpu.max"), "200000 100000\n").unwrap();
    assert_eq!(machine.resources().threads(), 2);
}

#[test]
fn this_machine_has_what_the_standard_library_finds() {
    let found = Machine::this().resources();
    assert!(found.threads() >= std::thread::available_parallelism().unwrap().get());
    assert!(found.memory() > 64 << 20 && found.memory() <= found.memory);
}
