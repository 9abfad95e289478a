//! Parse, load the configuration, start telemetry, run, flush.

use std::{
    io::{self, Write},
    num::NonZero,
    process::ExitCode,
    thread,
    time::Duration,
};

use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use thingspace_gateway::{
    app,
    cli::{Cli, Command, Operate, Restore, Store},
    config::Config,
    control,
    shutdown::Stop,
    telemetry,
};
use tikv_jemallocator::Jemalloc;
use tokio::runtime;

/// Gives memory back to the system after a peak. See docs/scaling.md for what was measured.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

// sysexits.h
const USAGE: u8 = 64;
const CONFIGURATION: u8 = 78;

/// With one worker the exporter of traces and whoever waits for it can block each other.
const LEAST_WORKERS: usize = 2;

/// How long blocking work may go on after everything else has ended.
const RUNTIME_SHUTDOWN: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { USAGE.into() } else { ExitCode::SUCCESS };
        }
    };
    match &cli.command {
        Command::Operate(Operate::Store(Store::Restore(Restore { backup, config }))) => {
            return match Config::store_of(config) {
                Ok(store) => once(app::restore(backup.clone(), store, &mut io::stdout())),
                Err(problems) => refuse(&problems),
            };
        }
        Command::Operate(command) => {
            let Some(remote) = command.remote() else { return USAGE.into() };
            let socket = remote
                .socket
                .clone()
                .map_or_else(|| Config::socket_of(remote.config.as_deref()), Ok);
            return match socket {
                Ok(socket) => once(control::client::run(command, socket, &mut io::stdout())),
                Err(problems) => refuse(&problems),
            };
        }
        Command::Health(health) => return once(app::health(&health.address)),
        _ => {}
    }
    let config = match Config::load(cli.config_file()) {
        Ok(config) => config,
        Err(problems) => return refuse(&problems),
    };
    if let Command::Check(_) = cli.command {
        for warning in config.warnings().iter() {
            let _ = writeln!(io::stderr(), "warning: {warning}");
        }
        return match write!(io::stdout(), "{config}") {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }

    let workers =
        thread::available_parallelism().map_or(LEAST_WORKERS, NonZero::get).max(LEAST_WORKERS);
    let runtime =
        match runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                let _ = writeln!(io::stderr(), "cannot start threads: {error}");
                return ExitCode::FAILURE;
            }
        };
    let telemetry = {
        let _context = runtime.enter();
        match telemetry::init(&config.telemetry) {
            Ok(telemetry) => telemetry,
            Err(error) => return refuse(&format!("{error:#}")),
        }
    };
    let code = match runtime.block_on(run(cli.command, config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    };
    telemetry.flush();
    runtime.shutdown_timeout(RUNTIME_SHUTDOWN);
    code
}

/// Raises the limit of open files as far as the system allows: each connection needs one.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    // If it fails, the limit stays as it was.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

async fn run(command: Command, mut config: Config) -> anyhow::Result<()> {
    raise_file_limit();
    let stop = Stop::on_signals()?;
    match command {
        Command::Serve(_) => {
            for warning in config.warnings().iter() {
                tracing::warn!("{warning}");
            }
            Box::pin(app::serve(config, stop)).await
        }
        Command::Dev(dev) => {
            if let Some(listen) = dev.listen {
                config.grpc.listen = listen;
                // Several may run side by side.
                config.admin.listen.set_port(0);
            }
            Box::pin(app::dev(config, dev.store, stop)).await
        }
        Command::Simulate(simulate) => {
            Box::pin(app::simulate(simulate.listen, simulate.control, stop)).await
        }
        Command::Check(_) | Command::Health(_) | Command::Operate(_) => Ok(()),
    }
}

/// Runs a command that ends by itself.
fn once(command: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    match runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn refuse(problems: &impl std::fmt::Display) -> ExitCode {
    let _ = writeln!(io::stderr(), "{problems}");
    CONFIGURATION.into()
}
