//! The binary. Parses the command line, loads the configuration, and starts telemetry and a runtime
//! if the command needs them.

use std::{
    fmt::Display,
    io::{self, Write},
    num::NonZero,
    path::Path,
    process::ExitCode,
    thread,
    time::Duration,
};

use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use thingspace_gateway::{
    app,
    cli::{
        Cli, Command, DevArgs, OperatorCommand, ReportFormat, RestoreArgs, SimulateArgs,
        StoreCommand,
    },
    config::{Config, Problems},
    control,
    doctor::{self, Level},
    shutdown::Stop,
    telemetry,
};
use tikv_jemallocator::Jemalloc;
use tokio::runtime;

/// Returns memory to the system after a peak; docs/scaling.md has the measurements.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Exit codes; see sysexits.h.
const FAILURE: u8 = 1;
const USAGE: u8 = 64;
const CONFIGURATION: u8 = 78;

/// Exit codes of `doctor`.
const WARNING: u8 = 1;
const DOCTOR_FAILURE: u8 = 2;

/// With one worker, the exporter of traces and a task that waits for it could block each other.
const MIN_WORKERS: usize = 2;

/// Workers look for new input after this number of tasks. Connections on which a peer sends frames
/// without end keep all workers busy, and a worker that is never idle would look after 61 tasks.
const EVENT_INTERVAL: u32 = 8;

/// How long blocking tasks may continue after everything else has ended.
const RUNTIME_SHUTDOWN: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { USAGE.into() } else { ExitCode::SUCCESS };
        }
    };
    let outcome = match cli.command {
        Command::Serve(args) => Config::load(Some(&args.config)).map(serve),
        Command::Dev(args) => Config::load(None).map(|config| dev(config, args)),
        Command::Simulate(args) => Config::load(None).map(|config| simulate(&config, &args)),
        Command::Check(args) if args.online => Ok(diagnose(&args.config, args.report.format())),
        Command::Check(args) => Config::load(Some(&args.config)).map(|config| check(&config)),
        Command::Doctor(args) => Ok(diagnose(&args.config, args.report.format())),
        Command::Health(args) => Ok(run_command(app::health(&args))),
        Command::Operator(OperatorCommand::Store(StoreCommand::Restore(args))) => restore(args),
        Command::Operator(command) => operate(&command),
    };
    outcome.unwrap_or_else(|problems| fail(CONFIGURATION, &problems))
}

fn serve(config: Config) -> ExitCode {
    run(&config.clone(), async |stop| {
        for warning in config.warnings().iter() {
            tracing::warn!("{warning}");
        }
        Box::pin(app::serve(config, stop)).await
    })
}

fn dev(mut config: Config, args: DevArgs) -> ExitCode {
    if let Some(listen) = args.listen {
        config.grpc.listen = listen;
        // Any free port, so that several gateways for development can run at the same time.
        config.admin.listen.set_port(0);
    }
    run(&config.clone(), async |stop| Box::pin(app::dev(config, args.store, stop)).await)
}

fn simulate(config: &Config, args: &SimulateArgs) -> ExitCode {
    run(config, async |stop| Box::pin(app::simulate(args.listen, args.control, stop)).await)
}

fn check(config: &Config) -> ExitCode {
    for warning in config.warnings().iter() {
        let _ = writeln!(io::stderr(), "warning: {warning}");
    }
    match write!(io::stdout(), "{config}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Returns 0, 1 or 2, as plugins of monitoring systems do.
fn diagnose(config: &Path, format: ReportFormat) -> ExitCode {
    let mut worst = Level::Ok;
    let ended = run_command(async {
        worst = doctor::run(config, format, &mut io::stdout()).await?;
        Ok(())
    });
    match worst {
        Level::Skipped | Level::Ok => ended,
        Level::Warning => WARNING.into(),
        Level::Failure => DOCTOR_FAILURE.into(),
    }
}

fn restore(args: RestoreArgs) -> Result<ExitCode, Problems> {
    let store = Config::store_of(&args.config)?;
    Ok(run_command(app::restore(args.backup, store, &mut io::stdout())))
}

fn operate(command: &OperatorCommand) -> Result<ExitCode, Problems> {
    let args = command.gateway();
    let socket = match args.and_then(|args| args.socket.clone()) {
        Some(socket) => socket,
        None => Config::socket_of(args.and_then(|args| args.config.as_deref()))?,
    };
    Ok(run_command(control::client::run(command, socket, &mut io::stdout())))
}

/// Runs a service with telemetry until a signal stops it.
fn run(config: &Config, service: impl AsyncFnOnce(Stop) -> anyhow::Result<()>) -> ExitCode {
    let workers =
        thread::available_parallelism().map_or(MIN_WORKERS, NonZero::get).max(MIN_WORKERS);
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .event_interval(EVENT_INTERVAL)
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return fail(FAILURE, &format_args!("cannot start threads: {error}")),
    };
    let telemetry = {
        let _context = runtime.enter();
        match telemetry::init(&config.telemetry) {
            Ok(telemetry) => telemetry,
            Err(error) => return fail(CONFIGURATION, &format_args!("{error:#}")),
        }
    };
    raise_file_limit();
    let outcome = runtime.block_on(async { service(Stop::on_signals()?).await });
    if let Err(error) = &outcome {
        let ending = format!("the process ends, because of a failure: {error:#}");
        // The filter may let no line of this module pass, and the cause must not be lost.
        if tracing::enabled!(tracing::Level::ERROR) {
            tracing::error!("{ending}");
        } else {
            let _ = writeln!(io::stderr(), "{ending}");
        }
    }
    telemetry.flush();
    runtime.shutdown_timeout(RUNTIME_SHUTDOWN);
    if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Raises the limit of open files as far as the system allows, because each connection needs one.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    // On failure the limit stays as it was.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Runs a command that ends by itself.
fn run_command(command: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    match runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(FAILURE, &format_args!("{error:#}")),
    }
}

fn fail(code: u8, message: &impl Display) -> ExitCode {
    let _ = writeln!(io::stderr(), "{message}");
    code.into()
}
