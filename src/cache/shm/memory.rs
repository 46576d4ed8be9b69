//! How much memory there is for a cache. A file in memory takes all of its own when it is made; beyond what there is, the
//! system would end some process for it, not refuse it.

use std::fs::read_to_string;

/// In bytes: of the machine, or less if the control group of this process may not have as much. `None` if it is not known.
pub fn available() -> Option<u64> {
    let machine = read_to_string("/proc/meminfo").ok().and_then(|text| of_machine(&text));
    let groups = read_to_string("/proc/self/cgroup").unwrap_or_default();
    machine.into_iter().chain(of_groups(&groups, &|path| read_to_string(path).ok())).min()
}

fn of_machine(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
}

/// What the groups of this process may still have, and those above them; copies of files on disks are no obstacle. In a
/// container a group may be mounted as if it were the topmost one.
fn of_groups(groups: &str, read: &dyn Fn(&str) -> Option<String>) -> Option<u64> {
    let mut least = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (folder, limit, usage) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max", "memory.current"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes")
            }
            _ => continue,
        };
        let mut path = path.trim_end_matches('/');
        loop {
            let text = |name: &str| read(&format!("{folder}{path}/{name}"));
            let number = |name: &str| text(name)?.trim().parse::<u64>().ok();
            if let Some(limit) = number(limit) {
                let used =
                    number(usage).unwrap_or(0).saturating_sub(of_files(&text("memory.stat").unwrap_or_default()));
                let left = limit.saturating_sub(used);
                least = Some(least.map_or(left, |least: u64| least.min(left)));
            }
            match path.rfind('/') {
                Some(end) => path = &path[..end],
                None => break,
            }
        }
    }
    least
}

/// Bytes of a group that the system takes back when they are needed.
fn of_files(statistics: &str) -> u64 {
    let number = |line: &str| {
        let (name, number) = line.split_once(' ')?;
        ["active_file", "inactive_file"].contains(&name).then(|| number.trim().parse::<u64>().ok())?
    };
    statistics.lines().filter_map(number).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_of_what_there_is_counts() {
        assert_eq!(of_machine("MemTotal:  99 kB\nMemAvailable:    2048 kB\n"), Some(2 << 20));
        assert_eq!(of_machine("MemTotal:  99 kB\n"), None);
        let read = |path: &str| {
            let text = match path {
                "/sys/fs/cgroup/memory.max" => "max\n",
                "/sys/fs/cgroup/a/memory.max" => "1000\n",
                "/sys/fs/cgroup/a/memory.current" => "500\n",
                "/sys/fs/cgroup/a/memory.stat" => "anon 300\nactive_file 150\ninactive_file 50\n",
                "/sys/fs/cgroup/a/b/memory.max" => "5000\n",
                "/sys/fs/cgroup/memory/c/memory.limit_in_bytes" => "800\n",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes" => "9223372036854771712\n",
                _ => return None,
            };
            Some(text.to_string())
        };
        assert_eq!(of_groups("0::/a/b\n", &read), Some(700));
        assert_eq!(of_groups("4:memory:/c\n0::/a\n", &read), Some(700));
        assert_eq!(of_groups("4:memory:/c/d\n3:cpu,cpuacct:/a\n0::/\n", &read), Some(800));
        assert_eq!(of_groups("3:cpu:/a\n", &read), None);
        assert_eq!(of_groups("", &read), None);
    }
}
