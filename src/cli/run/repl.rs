//! A conversation on the terminal.

use super::args::RunArgs;
use super::output::{self, Output, Run};
use super::{Exit, Failure, failure, signal, spell};
use crate::cli::print;
use crate::text::generate::{self, Finish};
use crate::text::{ChatTemplate, LanguageModel, Message, Session, Settings, TextError, Tokenizer};
use std::io::{BufRead, Write};

const GREETING: &str =
    "Say something; a line is a message. /new begins again, /exit or Ctrl-D ends.\n";
const FULL: &str = "\nThe context is full: /new begins again.\n";

/// What the user typed.
enum Typed {
    Text(String),
    New,
    End,
}

/// Talks until the user ends it, or the context is full.
pub fn converse(
    args: &RunArgs,
    session: &mut Session<impl LanguageModel>,
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    settings: &Settings,
    run: &Run,
) -> Result<Exit, Failure> {
    if !args.talk.quiet {
        say(GREETING);
    }
    let begin: Vec<Message> = args.system.iter().map(Message::system).collect();
    let mut messages = begin.clone();
    loop {
        match typed()? {
            Typed::End if signal::interrupted() => return Ok(Exit::Interrupted),
            Typed::End => return Ok(Exit::Ok),
            Typed::New => {
                messages.clone_from(&begin);
                continue;
            }
            Typed::Text(text) => messages.push(Message::user(text)),
        }
        let ids = spell(template, tokenizer, &messages)?;
        let mut output = Output::new(None);
        let made = generate::generate(session, tokenizer, &ids, settings, &mut output);
        let made = made.map_err(|error| Failure::stdout(&error))?;
        let made = match made {
            Ok(made) => made,
            Err(TextError::TooLong { .. }) => {
                say(FULL);
                messages.pop();
                continue;
            }
            Err(error) => return Err(failure(&error)),
        };
        print(b"\n")?;
        if !args.talk.quiet {
            output::statistics(&made, run);
        }
        match made.finish {
            Finish::Interrupted => return Ok(Exit::Interrupted),
            Finish::Context => say(FULL),
            _ => {}
        }
        messages.push(Message::assistant(made.text));
    }
}

/// The next line that says something.
fn typed() -> Result<Typed, Failure> {
    loop {
        say("\n> ");
        // A read is begun again where a signal breaks it; waiting is not.
        if !signal::wait_for_input() || signal::interrupted() {
            return Ok(Typed::End);
        }
        let mut line = String::new();
        let read = std::io::stdin().lock().read_line(&mut line);
        let count = read.map_err(|error| Failure::read(std::path::Path::new("<stdin>"), &error))?;
        match line.trim() {
            _ if count == 0 => return Ok(Typed::End),
            "" => {}
            "/exit" | "/quit" => return Ok(Typed::End),
            "/new" => return Ok(Typed::New),
            text => return Ok(Typed::Text(text.to_owned())),
        }
    }
}

/// To the user, beside the text.
fn say(text: &str) {
    let mut stderr = std::io::stderr().lock();
    // Without a stderr there is nobody to tell.
    let _ = stderr
        .write_all(text.as_bytes())
        .and_then(|()| stderr.flush());
}
