//! The process and its runtime: CPU, memory, descriptors, threads, and tokio's stable metrics.

use std::{fs, time::Instant};

use tokio::runtime::Handle;

use super::{attribute, names, number, observe};

/// Registers all gauges of the process. Must be called inside the runtime that they describe.
pub(super) fn observe_all() {
    let began = Instant::now();
    observe(&names::PROCESS_UPTIME, move |observe| observe(began.elapsed().as_secs_f64(), &[]));
    observe(&names::PROCESS_CPU_TIME, |observe| {
        let Some([user, system]) = cpu_time() else { return };
        observe(user, &[attribute(names::CPU_MODE, "user")]);
        observe(system, &[attribute(names::CPU_MODE, "system")]);
    });
    observe(&names::PROCESS_MEMORY_USAGE, |observe| {
        if let Some(kilobytes) = status("VmRSS:") {
            observe(kilobytes * 1024.0, &[]);
        }
    });
    observe(&names::PROCESS_THREADS, |observe| {
        if let Some(threads) = status("Threads:") {
            observe(threads, &[]);
        }
    });
    observe(&names::PROCESS_FILE_DESCRIPTORS, |observe| {
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            // The listing itself uses one.
            observe(number(open.count().saturating_sub(1)), &[]);
        }
    });

    let runtime = Handle::current().metrics();
    let of_runtime = runtime.clone();
    observe(&names::RUNTIME_WORKERS, move |observe| {
        observe(number(of_runtime.num_workers()), &[]);
    });
    let of_runtime = runtime.clone();
    observe(&names::RUNTIME_TASKS, move |observe| {
        observe(number(of_runtime.num_alive_tasks()), &[]);
    });
    let of_runtime = runtime.clone();
    observe(&names::RUNTIME_QUEUE, move |observe| {
        observe(number(of_runtime.global_queue_depth()), &[]);
    });
    observe(&names::RUNTIME_BUSY, move |observe| {
        let busy = (0..runtime.num_workers())
            .map(|worker| runtime.worker_total_busy_duration(worker).as_secs_f64());
        observe(busy.sum(), &[]);
    });
}

/// Returns the first number after a key of `/proc/self/status`.
fn status(key: &str) -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Returns the CPU time in user and in system mode, in seconds.
fn cpu_time() -> Option<[f64; 2]> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the program, in parentheses, may have blanks. Fields 14 and 15 are in ticks.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11).map(str::parse::<f64>);
    let (user, system) = (fields.next()?.ok()?, fields.next()?.ok()?);
    let ticks = number(usize::try_from(rustix::param::clock_ticks_per_second()).ok()?);
    Some([user / ticks, system / ticks])
}
