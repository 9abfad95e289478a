//! What was measured, and with what.

use std::{fs, process::Command};

use crate::{envoy, plan::Plan};

/// Returns what a reader needs to repeat the measurement, by name.
pub(crate) fn describe(plan: &Plan) -> Vec<(String, String)> {
    let envoy = envoy::version().unwrap_or_else(|| "not installed, left out".to_owned());
    let command = format!("`cargo bench --profile quick --bench suite -- {}`", plan.name);
    let described = [
        ("Machine", machine()),
        ("System", output("uname", &["-sr"])),
        ("Commit", output("git", &["describe", "--always", "--dirty"])),
        ("Compiler", output("rustc", &["--version"])),
        ("Envoy", envoy),
        ("Command", format!("{command}, {} runs", plan.runs)),
    ];
    described.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).into()
}

fn machine() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("processor", |(_, model)| model);
    let count = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kilobytes = memory.split_whitespace().nth(1).and_then(|text| text.parse::<f64>().ok());
    format!("{count} × {model}, {:.0} GB", kilobytes.unwrap_or_default() / 1e6)
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map(|of| String::from_utf8_lossy(&of.stdout).into_owned()).unwrap_or_default()
}
