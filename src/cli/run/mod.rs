//! `run`: a language model continues a text, or answers.

pub mod args;
mod engine;
mod output;
mod repl;

use super::device::Planning;
use super::{Exit, Failure, load, opt, signal};
use crate::runtime::Place;
use crate::text::LanguageModel;
use crate::text::{
    ChatTemplate, Finish, Message, Sampler, Sampling, SamplingError, Session, Settings, TextError,
    Tokenizer, generate,
};
use args::{PrecisionArg, RunArgs};
use engine::Causal;
use output::{Output, Run};
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

/// Tokens that are made of a plain prompt where -n says nothing.
const TOKENS: usize = 256;

/// Where the prompt comes from.
enum Prompt {
    /// It is known.
    Text(String),
    /// The user types it, again and again.
    Terminal,
}

/// Runs a model.
pub fn run(args: &RunArgs) -> Result<Exit, Failure> {
    let sampling = sampling(args)?;
    let prompt = prompt(args)?;
    let start = Instant::now();
    let progress = opt::progress(&args.talk);
    progress.stage("Loading", &args.model.display().to_string());
    args.device.check()?;
    if args.device.device == Place::Cpu {
        let engine = engine::open(args, &progress)?;
        let model = Causal::new(&engine, &args.model)?;
        let context = model.context();
        return speak(args, model, context, prompt, sampling, start);
    }
    if args.threads.is_some() {
        let what = "--threads has no effect on a GPU";
        return Err(Failure::new(Exit::Usage, what).help("leave it out"));
    }
    let planning = Planning {
        context: args.ctx,
        exact: args.precision == PrecisionArg::Exact,
    };
    let model = args.device.open(&args.model, planning, &progress)?;
    let context = Some(model.context());
    speak(args, model, context, prompt, sampling, start)
}

/// Answers with a model that is ready.
fn speak<M: LanguageModel>(
    args: &RunArgs,
    model: M,
    positions: Option<usize>,
    prompt: Prompt,
    sampling: Sampling,
    start: Instant,
) -> Result<Exit, Failure> {
    let tokenizer = Tokenizer::open(&tokenizer_place(args)).map_err(|error| failure(&error))?;
    let template = match args.chat {
        true => Some(template(args, &tokenizer)?),
        false => None,
    };
    let settings = settings(args, sampling, &tokenizer, positions)?;
    let run = Run {
        model: args.model.display().to_string(),
        seed: args.seed,
        threads: engine::threads(args),
        load: start.elapsed(),
    };
    let mut session = Session::new(model);
    match prompt {
        Prompt::Text(text) => {
            let ids = match &template {
                Some(template) => {
                    let mut messages: Vec<Message> =
                        args.system.iter().map(Message::system).collect();
                    messages.push(Message::user(text));
                    spell(template, &tokenizer, &messages)?
                }
                None => tokenizer
                    .encode_with_special(&text)
                    .map_err(|error| failure(&error))?,
            };
            once(args, &mut session, &tokenizer, &ids, &settings, &run)
        }
        Prompt::Terminal => {
            let template = template.ok_or_else(|| no_prompt(args))?;
            repl::converse(args, &mut session, &tokenizer, &template, &settings, &run)
        }
    }
}

/// One prompt, one answer.
fn once(
    args: &RunArgs,
    session: &mut Session<impl LanguageModel>,
    tokenizer: &Tokenizer,
    ids: &[u32],
    settings: &Settings,
    run: &Run,
) -> Result<Exit, Failure> {
    let mut output = Output::new(args.json);
    let made = generate::generate(session, tokenizer, ids, settings, &mut output);
    let made = made
        .map_err(|error| Failure::stdout(&error))?
        .map_err(|error| failure(&error))?;
    output.end(&made, run)?;
    if !args.talk.quiet {
        output::statistics(&made, run);
    }
    Ok(match made.finish {
        Finish::Interrupted => Exit::Interrupted,
        _ => Exit::Ok,
    })
}

/// The ids of a conversation, up to where the model is to speak.
fn spell(
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    messages: &[Message],
) -> Result<Vec<u32>, Failure> {
    let text = template.render(messages, SystemTime::now());
    // The template spells out what begins a text.
    let ids = text.and_then(|text| tokenizer.encode(&text));
    ids.map_err(|error| failure(&error))
}

fn sampling(args: &RunArgs) -> Result<Sampling, Failure> {
    let temperature = args.temp.unwrap_or(0.0);
    let filters = [
        ("--top-k", args.top_k.is_some()),
        ("--top-p", args.top_p.is_some()),
        ("--min-p", args.min_p.is_some()),
    ];
    if let Some((name, _)) = filters
        .iter()
        .find(|(_, given)| *given && temperature == 0.0)
    {
        let what =
            format!("{name} has no effect at temperature 0, where the likeliest token is taken");
        return Err(Failure::new(Exit::Usage, what).help("add a temperature, as --temp 0.8"));
    }
    if args.stop.iter().any(String::is_empty) {
        return Err(Failure::new(Exit::Usage, "--stop is empty").help("name the text to end at"));
    }
    let sampling = Sampling {
        temperature,
        top_k: args.top_k.unwrap_or(0),
        top_p: args.top_p.unwrap_or(1.0),
        min_p: args.min_p.unwrap_or(0.0),
        repeat_penalty: args.repeat_penalty,
        seed: args.seed,
    };
    Sampler::new(sampling.clone()).map_err(|error| failure(&error.into()))?;
    Ok(sampling)
}

fn settings(
    args: &RunArgs,
    sampling: Sampling,
    tokenizer: &Tokenizer,
    positions: Option<usize>,
) -> Result<Settings, Failure> {
    let asked = args.ctx.and_then(|n| usize::try_from(n).ok());
    if let (Some(asked), Some(positions)) = (asked, positions)
        && asked > positions
    {
        let what = format!("--ctx {asked}: the model has {positions} positions");
        return Err(Failure::new(Exit::Infeasible, what).help(format!("allow at most {positions}")));
    }
    let context = asked
        .or(positions)
        .or(tokenizer.special().context)
        .unwrap_or(usize::MAX);
    let most = if args.chat { usize::MAX } else { TOKENS };
    Ok(Settings {
        max_tokens: args.max_tokens.unwrap_or(most),
        context,
        sampling,
        stops: args.stop.clone(),
        stop_tokens: args
            .stop
            .iter()
            .filter_map(|stop| Some((tokenizer.special_id(stop)?, stop.clone())))
            .collect(),
        ends: if args.ignore_eos {
            Vec::new()
        } else {
            tokenizer.ends_at().collect()
        },
    })
}

fn prompt(args: &RunArgs) -> Result<Prompt, Failure> {
    if let Some(text) = &args.prompt {
        return Ok(Prompt::Text(text.clone()));
    }
    let dash = Path::new("-");
    let file = args
        .stdin
        .as_ref()
        .map(|_| dash)
        .or(args.prompt_file.as_deref());
    let Some(path) = file else {
        let talks = args.chat && args.json.is_none() && std::io::stdin().is_terminal();
        return if talks {
            Ok(Prompt::Terminal)
        } else {
            Err(no_prompt(args))
        };
    };
    let mut bytes = Vec::new();
    let read = match path == dash {
        true => std::io::stdin().lock().read_to_end(&mut bytes).map(|_| ()),
        false => std::fs::read(path).map(|read| bytes = read),
    };
    let shown = if path == dash {
        Path::new("<stdin>")
    } else {
        path
    };
    read.map_err(|error| Failure::read(shown, &error))?;
    String::from_utf8(bytes).map(Prompt::Text).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let what = format!("{}: the prompt is not UTF-8 at byte {at}", shown.display());
        Failure::new(Exit::Input, what).help("save the text as UTF-8")
    })
}

fn no_prompt(args: &RunArgs) -> Failure {
    let help = match args.chat {
        true => {
            "give one with --prompt, --prompt-file or -; a conversation without one needs a terminal, and no --json"
        }
        false => {
            "give one with --prompt, --prompt-file or -; or converse on a terminal with --chat"
        }
    };
    Failure::new(Exit::Usage, "there is no prompt").help(help)
}

/// Where the tokenizer is: the model's folder, unless the user names another.
fn tokenizer_place(args: &RunArgs) -> PathBuf {
    if let Some(place) = &args.tokenizer {
        return place.clone();
    }
    if args.model.is_dir() {
        return args.model.clone();
    }
    match args.model.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

fn template(args: &RunArgs, tokenizer: &Tokenizer) -> Result<ChatTemplate, Failure> {
    let place = tokenizer_place(args);
    let folder = if place.is_dir() {
        Some(place.as_path())
    } else {
        place.parent()
    };
    let folder = folder
        .filter(|f| !f.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    ChatTemplate::open(folder, tokenizer.special()).map_err(|error| failure(&error))
}

/// What the text module says, with its exit code.
fn failure(error: &TextError) -> Failure {
    let exit = match error {
        TextError::EmptyPrompt | TextError::Sampling(SamplingError::Setting { .. }) => Exit::Usage,
        TextError::TooLong { .. } => Exit::Infeasible,
        TextError::Sampling(_) | TextError::Model(_) => Exit::Failure,
        _ => Exit::Input,
    };
    Failure::new(exit, error.to_string()).help(error.help())
}
