//! The command line: arguments, settings, logs, then one of the commands. No logic.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use mtplx::bank::{self, BankArgs};
use mtplx::bench::products::{self, ProductsArgs};
use mtplx::bench::shape::{self, ShapeArgs};
use mtplx::bench::{self, BenchArgs};
use mtplx::chat::{self, ChatArgs, RunArgs};
use mtplx::config::{self, Config};
use mtplx::connect::{self, ConnectArgs, OpenWebuiArgs};
use mtplx::convert::{self, ConvertArgs};
use mtplx::doctor::{self, DoctorArgs};
use mtplx::fans::command::{self, MaxArgs};
use mtplx::fans::watchdog::{self, WatchdogArgs};
use mtplx::init::{self, InitArgs};
use mtplx::inspect::{self, InspectArgs};
use mtplx::keys::{self, KeysArgs};
use mtplx::model::Model;
use mtplx::models::{self, ModelsArgs};
use mtplx::node::{self, NodeArgs};
use mtplx::plan::{self, PlanArgs};
use mtplx::pull::{self, PullArgs, cache};
use mtplx::schema::{self, SchemaArgs};
use mtplx::service::{self, ServiceArgs};
use mtplx::start::{self, QuickstartArgs, StartArgs};
use mtplx::tune::{self, BenchTuneArgs, CandidateArgs, Site, TuneArgs};
use mtplx::verify::{self, VerifyArgs};
use mtplx::{App, exit, fans, telemetry};
use toml::Value;

mod signals;

use signals::{Signals, leave_at_the_next};

/// Native MTP speculative decoding for a whole team on one machine.
#[derive(Parser)]
#[command(version, after_help = exit::HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Choose a model, a mode and where to talk, and begin.
    Start(Box<StartArgs>),
    /// Serve without a question: what was started last, or the small model.
    Quickstart(QuickstartArgs),
    /// Serve a model over HTTP.
    Serve(Serve),
    /// Say what a folder is as a model, and whether it can be served.
    Inspect(InspectArgs),
    /// List the models on this machine, or delete one.
    Models(ModelsArgs),
    /// Run the gates that a model passes before it is served, and write its contract.
    Verify(VerifyArgs),
    /// Print the schema of what a command prints with --json.
    Schema(SchemaArgs),
    /// Measure what speculation brings on this machine.
    Bench(Bench),
    /// Find the draft depth that is fastest on this machine, beyond doubt.
    Tune(Tune),
    /// One depth of it, in a process of its own.
    #[command(hide = true)]
    TuneCandidate(Candidate),
    /// Say what memory a model and its clients need, before anything is loaded.
    Plan(Plan),
    /// Talk with a model in this terminal.
    Chat(ChatArgs),
    /// Ask once and print the answer.
    Run(RunArgs),
    /// Look whether this machine can serve, and say what to do where it cannot.
    Doctor(DoctorArgs),
    /// Give a client the settings by which it finds the server.
    Connect(ConnectArgs),
    /// Open WebUI beside the server.
    Openwebui(OpenWebuiArgs),
    /// Write a file of all settings, with their reasons.
    #[command(visible_alias = "setup")]
    Init(InitArgs),
    /// Write completions for a shell to stdout.
    #[command(after_help = "Example:\n  mtplx completions zsh > ~/.zfunc/_mtplx")]
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write the manual page to stdout.
    #[command(after_help = "Example:\n  mtplx man > mtplx.1")]
    Man,
    /// Fetch a model from Hugging Face, or a mirror of it.
    Pull(PullArgs),
    /// Write a published checkpoint in MLX's layout, quantised where that is wanted.
    Convert(ConvertArgs),
    /// See and manage what a running server keeps warm.
    Bank(BankArgs),
    /// Make, list, revoke and renew keys of clients.
    Keys(Keys),
    /// Make rows for another machine, or look after those that do.
    Node(Node),
    /// The machine's fans: let them be turned, see how they stand, give them back.
    Max(Max),
    /// Gives the fans back when the server that started it ends.
    #[command(name = watchdog::COMMAND, hide = true)]
    FanWatchdog(WatchdogArgs),
    /// Make the server a service of this machine, or of you.
    Service(ServiceArgs),
}

#[derive(Args)]
#[command(after_help = "Examples:\n  mtplx serve\n  \
    mtplx serve --model owner/name --mode burst\n  \
    mtplx serve --config my.toml --host 0.0.0.0 --port 8080")]
struct Serve {
    /// Address to listen on, or localhost.
    #[arg(long, value_parser = config::host)]
    host: Option<IpAddr>,
    /// Port to listen on; 0 takes a free one.
    #[arg(long)]
    port: Option<u16>,
    /// As --mode sustained-max: with the fans at their most.
    #[arg(long, conflicts_with = "mode")]
    max: bool,
    #[command(flatten)]
    trust: Trust,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, after_help = bench::EXAMPLES)]
struct Bench {
    #[command(subcommand)]
    of: Option<BenchOf>,
    #[command(flatten)]
    bench: BenchArgs,
    #[command(flatten)]
    common: Common,
}

#[derive(Subcommand)]
enum BenchOf {
    /// Measure a model of a full shape with random weights; no checkpoint is needed.
    Shape(ShapeArgs),
    /// Measure bare products with quantised weights, by how many rows share them.
    Products(ProductsArgs),
    /// Compare draft depths as `tune` does, and say what the machine did meanwhile.
    Tune(BenchTune),
}

#[derive(Args)]
#[command(after_help = tune::BENCH_EXAMPLES)]
struct BenchTune {
    #[command(flatten)]
    bench: BenchTuneArgs,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
#[command(after_help = tune::EXAMPLES)]
struct Tune {
    #[command(flatten)]
    tune: TuneArgs,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct Candidate {
    #[command(flatten)]
    candidate: CandidateArgs,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
#[command(after_help = plan::EXAMPLES)]
struct Plan {
    #[command(flatten)]
    plan: PlanArgs,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
#[command(after_help = keys::EXAMPLES)]
struct Keys {
    /// The file of keys; that of the settings without it.
    #[arg(long, global = true)]
    file: Option<PathBuf>,
    /// Settings that name the file.
    #[arg(long, global = true)]
    config: Option<PathBuf>,
    #[command(flatten)]
    keys: KeysArgs,
}

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, after_help = node::EXAMPLES)]
struct Node {
    #[command(flatten)]
    node: NodeArgs,
    #[command(flatten)]
    trust: Trust,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
#[command(after_help = command::EXAMPLES)]
struct Max {
    #[command(flatten)]
    max: MaxArgs,
    /// ThermalForge, rather than what the settings name.
    #[arg(long)]
    program: Option<PathBuf>,
    /// Settings that name it.
    #[arg(long)]
    config: Option<PathBuf>,
}

/// Which models are served.
#[derive(Args)]
struct Trust {
    /// Serve a model that `mtplx verify` has not passed, as model.unverified = "accept" does.
    #[arg(long)]
    unsafe_force_unverified: bool,
    /// Serve without drafts, as model.generation = "ar" does; so models without an MTP head serve.
    #[arg(long)]
    no_mtp: bool,
}

impl Trust {
    fn overrides(&self) -> Vec<(&'static str, &'static str, Value)> {
        let accept = self.unsafe_force_unverified.then_some(("model", "unverified", "accept"));
        let plain = self.no_mtp.then_some(("model", "generation", "ar"));
        let text =
            |(section, key, value): (_, _, &str)| (section, key, Value::String(value.into()));
        accept.into_iter().chain(plain).map(text).collect()
    }
}

#[derive(Args)]
struct Common {
    /// Folder of a checkpoint, or owner/name of a model that was pulled; without it the small model
    /// inside the binary.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Settings laid over the defaults.
    #[arg(long)]
    config: Option<PathBuf>,
    /// A profile laid between both: sustained, sustained-max, burst, stable or safe.
    #[arg(long)]
    mode: Option<String>,
}

impl Common {
    fn load(&self, mut overrides: Vec<(&str, &str, Value)>) -> Result<Config> {
        if let Some(path) = &self.model {
            // What was fetched is known by its name, too.
            let fetched = cache::fetched(path);
            let path = fetched.as_ref().unwrap_or(path);
            overrides.push(("model", "path", Value::String(path.display().to_string())));
        }
        overrides.extend(self.mode.clone().map(|mode| ("", "mode", Value::String(mode))));
        Ok(Config::load(self.config.as_deref(), &overrides)?)
    }
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Serve(args) => serve(&args),
        Command::Inspect(args) => return inspect::run(&args),
        Command::Models(args) => models::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Schema(args) => schema::run(&args),
        Command::Bench(args) => measure(&args),
        Command::Tune(args) => tune_depth(&args),
        Command::TuneCandidate(args) => tune_candidate(&args),
        Command::Plan(args) => plan(&args),
        Command::Start(args) => start::run(&args),
        Command::Quickstart(args) => start::quickstart(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Connect(args) => connect::run(&args),
        Command::Openwebui(args) => connect::open_webui(&args),
        Command::Init(args) => init::run(&args),
        Command::Completions { shell } => complete(shell),
        Command::Man => manual(),
        Command::Chat(args) => chat::run(&args),
        Command::Run(args) => chat::run_once(&args),
        Command::Pull(args) => pull::run(&args),
        Command::Convert(args) => convert::run(&args),
        Command::Bank(args) => bank::run(&args),
        Command::Keys(args) => edit_keys(&args),
        Command::Node(args) => be_node(&args),
        Command::Max(args) => turn_fans(&args),
        Command::FanWatchdog(args) => return watchdog::run(&args),
        Command::Service(args) => service::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mtplx: {error:#}");
            ExitCode::from(exit::code_of(&error))
        }
    }
}

fn serve(args: &Serve) -> Result<()> {
    let mut overrides = args.trust.overrides();
    overrides.extend(args.host.map(|host| ("server", "host", Value::String(host.to_string()))));
    overrides.extend(args.port.map(|port| ("server", "port", Value::Integer(port.into()))));
    overrides.extend(args.max.then(|| ("", "mode", Value::String("sustained-max".into()))));
    let config = args.common.load(overrides)?;
    let spans = telemetry::logs_and_traces(&config.log, &config.traces)?;
    let metrics = telemetry::metrics()?;
    let model = Model::open(&config.model)?;
    model.admit(&config.model)?;
    let render = telemetry::render(metrics.clone(), config.metrics, &model.name);
    let runtime = tokio::runtime::Runtime::new()?;
    let done = runtime.block_on(async {
        let mut signals = Signals::listen()?;
        tokio::spawn(telemetry::upkeep(metrics));
        let app = App::start(&config, &model, render).await?;
        let address = app.address();
        signals.reloader = Some(app.reloader());
        let stop = async move {
            signals.next().await;
            tokio::spawn(leave_at_the_next(signals));
        };
        let scheme = if config.tls.is_some() { "https" } else { "http" };
        let fans = fans::keep(&config.fans, app.door()).await;
        let done = app.run(stop, || announce(&model.name, scheme, address)).await;
        fans.stop().await;
        done
    });
    // A sensor or a device that hangs would hold up the end for ever.
    runtime.shutdown_background();
    drop(spans);
    done
}

/// As [`serve`], for another machine.
fn be_node(args: &Node) -> Result<()> {
    if let Some(command) = &args.node.command {
        return node::command(command);
    }
    let runtime = tokio::runtime::Runtime::new()?;
    let config = args.common.load(args.trust.overrides())?;
    telemetry::logs(&config.log)?;
    let metrics = telemetry::metrics()?;
    let model = Model::open(&config.model)?;
    model.admit(&config.model)?;
    let done = runtime.block_on(async {
        let mut signals = Signals::listen()?;
        tokio::spawn(telemetry::upkeep(metrics.clone()));
        let stop = async move {
            signals.next().await;
            tokio::spawn(leave_at_the_next(signals));
        };
        let announce = |address| announce(&model.name, "http", address);
        let render = telemetry::render(metrics, config.metrics, &model.name);
        node::run(&args.node, &config, &model, render, (stop, announce)).await
    });
    runtime.shutdown_background();
    done
}

/// The one line on stdout, for people and for whoever started us on port 0.
#[expect(clippy::print_stdout, reason = "the address is what the command returns")]
fn announce(name: &str, scheme: &str, address: SocketAddr) {
    println!("serving {name} on {scheme}://{address}");
}

fn measure(args: &Bench) -> Result<()> {
    if let Some(BenchOf::Tune(args)) = &args.of {
        return tune::bench(&args.bench, &site(&args.common)?);
    }
    let config = args.common.load(Vec::new())?;
    telemetry::logs(&config.log)?;
    match &args.of {
        Some(BenchOf::Shape(args)) => return shape::run(args),
        Some(BenchOf::Products(args)) => return products::run(args),
        Some(BenchOf::Tune(_)) | None => {}
    }
    let model = Model::open(&config.model)?;
    let slots = config.engine.slots.max(args.bench.clients);
    let options = mtplx_kernels::EngineOptions { slots, ..config.engine };
    let engine = mtplx_kernels::open(&model.checkpoint, &options)?;
    bench::run(&model, engine, &args.bench)
}

fn tune_depth(args: &Tune) -> Result<()> {
    tune::run(&args.tune, &site(&args.common)?)
}

fn site(args: &Common) -> Result<Site> {
    let config = args.load(Vec::new())?;
    telemetry::logs(&config.log)?;
    // A checkpoint without an MTP head is found out before any process is started.
    let model = Model::open(&config.model)?;
    let depth_max = if model.checkpoint.mtp.is_ok() { config.engine.depth_max } else { 0 };
    let mut common = Vec::new();
    for (flag, path) in [("--model", &args.model), ("--config", &args.config)] {
        if let Some(path) = path {
            common.extend([flag.into(), path.clone().into_os_string()]);
        }
    }
    if let Some(mode) = &args.mode {
        common.extend(["--mode".into(), mode.into()]);
    }
    let sensor_time = config.actors.thermal.timeout();
    Ok(Site { depth_max, sensor_time, common })
}

fn tune_candidate(args: &Candidate) -> Result<()> {
    let config = args.common.load(Vec::new())?;
    telemetry::logs(&config.log)?;
    let model = Model::open(&config.model)?;
    let engine = mtplx_kernels::open(&model.checkpoint, &config.engine)?;
    tune::candidate(&model, engine, &args.candidate)
}

fn plan(args: &Plan) -> Result<()> {
    let config = args.common.load(Vec::new())?;
    plan::run(&Model::open(&config.model)?, &config, &args.plan)
}

/// The file is named, or is the settings' own.
fn edit_keys(args: &Keys) -> Result<()> {
    let file = match &args.file {
        Some(file) => file.clone(),
        None => keys::file_of(args.config.as_deref())?,
    };
    keys::run(&file, &args.keys)
}

fn turn_fans(args: &Max) -> Result<()> {
    let program = args.program.as_ref().map(|path| Value::String(path.display().to_string()));
    let overrides: Vec<_> = program.map(|path| ("fans", "program", path)).into_iter().collect();
    command::run(&Config::load(args.config.as_deref(), &overrides)?.fans, &args.max)
}

/// Written whole: a reader that leaves early is no mistake of ours.
fn complete(shell: Shell) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "mtplx", &mut text);
    Ok(std::io::stdout().write_all(&text)?)
}

/// One page, all commands on it.
fn manual() -> Result<()> {
    let mut text = Vec::new();
    clap_mangen::Man::new(Cli::command()).render(&mut text)?;
    let commands = Cli::command();
    for command in commands.get_subcommands().filter(|command| !command.is_hide_set()) {
        let man = clap_mangen::Man::new(command.clone());
        let name = command.get_name().to_uppercase();
        writeln!(text, ".SH \"MTPLX {name}\"")?;
        man.render_description_section(&mut text)?;
        man.render_options_section(&mut text)?;
    }
    Ok(std::io::stdout().write_all(&text)?)
}
