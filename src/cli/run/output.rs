//! What `run` prints: the text as it comes, JSON, statistics.

use super::args::JsonForm;
use crate::cli::table::Table;
use crate::cli::{Failure, print, signal};
use crate::report::{human, resources};
use crate::text::Finish;
use crate::text::generate::{Generated, Listener, Piece};
use serde::Serialize;
use std::io::{IsTerminal, Result, Write};
use std::time::Duration;

/// What is known of a run beside its text.
pub struct Run {
    /// The model as the user names it.
    pub model: String,
    /// Seed of the draws.
    pub seed: u64,
    /// Worker threads.
    pub threads: usize,
    /// Time until the model was ready.
    pub load: Duration,
}

/// Shows tokens as they come.
pub struct Output {
    json: Option<JsonForm>,
}

/// A token in `--json=lines`.
#[derive(Serialize)]
struct Line<'a> {
    /// None for text that waited for more until the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<u32>,
    text: &'a str,
}

/// The result as JSON. `docs/run.md` describes it.
#[derive(Serialize)]
struct Object<'a> {
    model: &'a str,
    text: &'a str,
    tokens: &'a [u32],
    finish: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop: Option<&'a str>,
    prompt_tokens: usize,
    seed: u64,
    threads: usize,
    load_s: f64,
    prefill_s: f64,
    prefill_tokens_per_s: Option<f64>,
    decode_s: f64,
    decode_tokens_per_s: f64,
    peak_rss_bytes: u64,
}

impl Output {
    /// Shows plain text, or JSON.
    pub fn new(json: Option<JsonForm>) -> Self {
        Self { json }
    }

    /// Ends the text, or prints the object.
    ///
    /// # Errors
    /// stdout can't be written.
    pub fn end(&self, made: &Generated, run: &Run) -> std::result::Result<(), Failure> {
        match self.json {
            // On a terminal the next line is the shell's; elsewhere the text stays what it is.
            None if std::io::stdout().is_terminal() && !made.text.ends_with('\n') => print(b"\n"),
            None => Ok(()),
            Some(_) => {
                let text = serde_json::to_string(&object(made, run));
                print((text.unwrap_or_default() + "\n").as_bytes())
            }
        }
    }
}

impl Listener for Output {
    fn piece(&mut self, piece: Piece<'_>) -> Result<()> {
        let line;
        let bytes = match self.json {
            None => piece.text.as_bytes(),
            Some(JsonForm::Object) => return Ok(()),
            Some(JsonForm::Lines) => {
                let Piece { token, text } = piece;
                line = serde_json::to_string(&Line { token, text })? + "\n";
                line.as_bytes()
            }
        };
        if bytes.is_empty() {
            return Ok(());
        }
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(bytes).and_then(|()| stdout.flush())
    }

    fn interrupted(&self) -> bool {
        signal::interrupted()
    }
}

fn object<'a>(made: &'a Generated, run: &'a Run) -> Object<'a> {
    Object {
        model: &run.model,
        text: &made.text,
        tokens: &made.tokens,
        finish: made.finish.word(),
        stop: match &made.finish {
            Finish::Stop(stop) => Some(stop),
            _ => None,
        },
        prompt_tokens: made.prompt,
        seed: run.seed,
        threads: run.threads,
        load_s: run.load.as_secs_f64(),
        prefill_s: made.prefill.as_secs_f64(),
        prefill_tokens_per_s: made.prefill_rate(),
        decode_s: made.decode.as_secs_f64(),
        decode_tokens_per_s: made.decode_rate(),
        peak_rss_bytes: resources::peak_rss(),
    }
}

/// Prints on stderr how fast it was.
pub fn statistics(made: &Generated, run: &Run) {
    let mut table = Table::new(&["", "tokens>", "time>", "tokens/s>"]);
    let time = |time: Duration| human::duration(time);
    let rate = |rate: f64| match rate {
        0.0 => "-".to_string(),
        rate => format!("{rate:.1}"),
    };
    table.row(["load".into(), String::new(), time(run.load), String::new()]);
    table.row([
        "prefill".into(),
        made.prefilled.to_string(),
        time(made.prefill),
        made.prefill_rate().map_or("-".to_owned(), rate),
    ]);
    table.row([
        "decode".into(),
        made.steps.to_string(),
        time(made.decode),
        rate(made.decode_rate()),
    ]);
    let count = human::plural(made.tokens.len(), "token");
    let ended = match &made.finish {
        Finish::End => "the model ended its text".into(),
        Finish::Stop(stop) => format!("ended at {stop:?}"),
        Finish::Length => "as many as allowed".into(),
        Finish::Context => "the context is full".into(),
        Finish::Interrupted => "interrupted".to_owned(),
    };
    let peak = human::size(resources::peak_rss());
    let table = table.render();
    // Without a stderr there is nobody to tell.
    let mut stderr = std::io::stderr().lock();
    let _ = writeln!(stderr, "\n{table}{count}: {ended}; peak RSS {peak}");
}
