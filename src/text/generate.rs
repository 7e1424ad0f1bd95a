//! The loop of generation: prompt in, tokens out, until something ends it.

use std::time::{Duration, Instant};

use super::sampler::{Sampler, Sampling};
use super::stream::{Decode, Detokenizer, Stops};
use super::{Result, TextError};

/// Tokens of the prompt that are run at a time; between them an interrupt is heard.
const PREFILL: usize = 512;

/// Why a model gives no logits.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Somebody asked to stop while it ran.
    #[error("interrupted")]
    Interrupted,
    /// It can't be run.
    #[error(transparent)]
    Failed(Box<dyn std::error::Error + Send + Sync>),
}

/// A model that says what comes next.
pub trait LanguageModel {
    /// Tokens that it knows: ids are below this.
    fn vocabulary(&self) -> usize;

    /// Runs tokens behind those seen so far; the logits `[vocabulary]` behind the last.
    ///
    /// # Errors
    /// The model can't be run.
    fn forward(&mut self, tokens: &[u32]) -> Result<&[f32], ModelError>;

    /// Says how many tokens a prompt has, in front of its first run: they come in several.
    fn expect(&mut self, tokens: usize) {
        let _ = tokens;
    }

    /// Forgets what was seen behind the first `keep` tokens; how many it could keep of them.
    fn rewind(&mut self, keep: usize) -> usize;
}

/// When and how to go on.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Tokens to make at most.
    pub max_tokens: usize,
    /// Tokens to stay within, the prompt's included.
    pub context: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Texts at which to end; they are left out.
    pub stops: Vec<String>,
    /// Special tokens at which to end, by their spelling: no text of theirs could be found.
    pub stop_tokens: Vec<(u32, String)>,
    /// Ids at which to end; they are left out.
    pub ends: Vec<u32>,
}

/// Why generation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model said that its text ends.
    End,
    /// This stop string came.
    Stop(String),
    /// As many tokens as allowed.
    Length,
    /// The context is full.
    Context,
    /// Somebody asked to stop.
    Interrupted,
}

impl Finish {
    /// One word for programs.
    pub fn word(&self) -> &'static str {
        match self {
            Finish::End => "end",
            Finish::Stop(_) => "stop",
            Finish::Length => "length",
            Finish::Context => "context",
            Finish::Interrupted => "interrupted",
        }
    }
}

/// What was made, and how long it took.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// The text that was told.
    pub text: String,
    /// Its tokens; those of a stop string included, the one that ends the text not.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Those of them that the model had seen before.
    pub cached: usize,
    /// Tokens of it that were run: the rest, unless that was interrupted.
    pub prefilled: usize,
    /// Why it ended.
    pub finish: Finish,
    /// Until the first token was there.
    pub prefill: Duration,
    /// From then on.
    pub decode: Duration,
    /// Runs of the model in `decode`: one for each token but the first.
    pub steps: usize,
}

impl Generated {
    /// Tokens of the prompt that were run in each second; none where that was interrupted, since
    /// nobody knows how far the last ones had come.
    pub fn prefill_rate(&self) -> Option<f64> {
        let whole = self.prefilled + self.cached >= self.prompt;
        whole.then(|| rate(self.prefilled, self.prefill))
    }

    /// Tokens behind the first in each second.
    pub fn decode_rate(&self) -> f64 {
        rate(self.steps, self.decode)
    }
}

fn rate(count: usize, time: Duration) -> f64 {
    match time.as_secs_f64() {
        0.0 => 0.0,
        seconds => count as f64 / seconds,
    }
}

/// A token as it comes, and the text that it completes; at the end, text without a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'t> {
    /// The token.
    pub token: Option<u32>,
    /// Text that can be shown now; may be empty.
    pub text: &'t str,
}

/// What generation tells, and asks, while it goes on.
pub trait Listener {
    /// Takes a piece of the text.
    ///
    /// # Errors
    /// It can't be shown; generation ends.
    fn piece(&mut self, piece: Piece<'_>) -> std::io::Result<()>;

    /// Whether to stop.
    fn interrupted(&self) -> bool {
        false
    }
}

/// How far a prompt was run.
struct Prefilled {
    /// The logits behind it; none where it was interrupted.
    logits: Option<Vec<f32>>,
    /// Tokens that had been seen before.
    kept: usize,
    /// Tokens that were run.
    run: usize,
}

/// A model and what it has seen.
#[derive(Debug)]
pub struct Session<M> {
    model: M,
    seen: Vec<u32>,
}

impl<M: LanguageModel> Session<M> {
    /// A session that has seen nothing.
    pub fn new(model: M) -> Self {
        Self {
            model,
            seen: Vec::new(),
        }
    }

    /// Runs a prompt behind what it shares with what was seen.
    fn prefill(&mut self, prompt: &[u32], stop: &dyn Fn() -> bool) -> Result<Prefilled> {
        let shared = prompt
            .iter()
            .zip(&self.seen)
            .take_while(|(a, b)| a == b)
            .count();
        // The last token is run again where all are known: its logits are what is asked for.
        let shared = shared.min(prompt.len().saturating_sub(1));
        let kept = if shared < self.seen.len() {
            self.model.rewind(shared).min(shared)
        } else {
            shared
        };
        self.seen.truncate(kept);
        self.model.expect(prompt.len());
        let mut done = Prefilled {
            logits: None,
            kept,
            run: 0,
        };
        for tokens in prompt.get(kept..).unwrap_or(&[]).chunks(PREFILL) {
            let logits = match stop() {
                true => None,
                false => self.forward(tokens)?.map(<[f32]>::to_vec),
            };
            done.logits = logits;
            if done.logits.is_none() {
                break;
            }
            done.run += tokens.len();
        }
        Ok(done)
    }

    /// Runs tokens; none where it was interrupted.
    fn forward(&mut self, tokens: &[u32]) -> Result<Option<&[f32]>> {
        match self.model.forward(tokens) {
            Ok(logits) => {
                // What a run that failed had seen is forgotten by the model too.
                self.seen.extend_from_slice(tokens);
                Ok(Some(logits))
            }
            Err(ModelError::Interrupted) => Ok(None),
            Err(ModelError::Failed(error)) => Err(TextError::Model(error)),
        }
    }
}

/// Continues a prompt; `Err` of the outer result is the listener's.
///
/// Cost: one run of the model over what is new in the prompt, and one for each token.
///
/// # Errors
/// An empty prompt, one that leaves no room, a token that the model doesn't have, a setting out of its
/// range; whatever the model or the listener says.
pub fn generate<M: LanguageModel>(
    session: &mut Session<M>,
    decoder: &dyn Decode,
    prompt: &[u32],
    settings: &Settings,
    listener: &mut dyn Listener,
) -> std::io::Result<Result<Generated>> {
    let mut sampler = match prepare(session, prompt, settings) {
        Ok(sampler) => sampler,
        Err(error) => return Ok(Err(error)),
    };
    let start = Instant::now();
    let prefilled = session.prefill(prompt, &|| listener.interrupted());
    let Prefilled { logits, kept, run } = match prefilled {
        Ok(prefilled) => prefilled,
        Err(error) => return Ok(Err(error)),
    };
    let mut made = Generated {
        text: String::new(),
        tokens: Vec::new(),
        prompt: prompt.len(),
        cached: kept,
        prefilled: run,
        finish: Finish::Interrupted,
        prefill: start.elapsed(),
        decode: Duration::ZERO,
        steps: 0,
    };
    let Some(logits) = logits else {
        return Ok(Ok(made));
    };
    let mut telling = Telling {
        text: Detokenizer::new(decoder, prompt),
        stops: Stops::new(settings.stops.iter().cloned()),
        listener,
    };
    let start = Instant::now();
    let ended = decode(
        session,
        &mut sampler,
        logits,
        prompt,
        settings,
        &mut telling,
        &mut made,
    )?;
    made.decode = start.elapsed();
    match ended {
        Ok(finish) => made.finish = finish,
        Err(error) => return Ok(Err(error)),
    }
    let rest = telling.rest(&made.finish);
    if !rest.is_empty() {
        made.text.push_str(&rest);
        telling.listener.piece(Piece {
            token: None,
            text: &rest,
        })?;
    }
    Ok(Ok(made))
}

fn prepare<M: LanguageModel>(
    session: &Session<M>,
    prompt: &[u32],
    settings: &Settings,
) -> Result<Sampler> {
    let sampler = Sampler::new(settings.sampling.clone())?;
    if prompt.is_empty() {
        return Err(TextError::EmptyPrompt);
    }
    if prompt.len() >= settings.context {
        let (tokens, context) = (prompt.len(), settings.context);
        return Err(TextError::TooLong { tokens, context });
    }
    let vocabulary = session.model.vocabulary();
    let unknown = |&&id: &&u32| usize::try_from(id).map_or(true, |id| id >= vocabulary);
    if let Some(&token) = prompt.iter().find(unknown) {
        return Err(TextError::Vocabulary { token, vocabulary });
    }
    Ok(sampler)
}

/// The way of a token to the listener.
struct Telling<'t> {
    text: Detokenizer<'t, dyn Decode + 't>,
    stops: Stops,
    listener: &'t mut dyn Listener,
}

impl Telling<'_> {
    /// Tells a token; the stop string that it completes.
    fn token(&mut self, token: u32, all: &mut String) -> std::io::Result<Option<String>> {
        let fresh = self.text.push(token);
        let passed = self.stops.push(&fresh);
        all.push_str(&passed.text);
        self.listener.piece(Piece {
            token: Some(token),
            text: &passed.text,
        })?;
        Ok(passed.stop)
    }

    /// What waited for more, now that there is no more.
    fn rest(&mut self, finish: &Finish) -> String {
        if matches!(finish, Finish::Stop(_)) {
            return String::new();
        }
        let open = self.text.finish();
        // A last incomplete character can't complete a stop string.
        let passed = self.stops.push(&open);
        passed.text + &self.stops.finish()
    }
}

/// Chooses, tells and runs one token after the other.
fn decode<M: LanguageModel>(
    session: &mut Session<M>,
    sampler: &mut Sampler,
    mut logits: Vec<f32>,
    prompt: &[u32],
    settings: &Settings,
    telling: &mut Telling<'_>,
    made: &mut Generated,
) -> std::io::Result<Result<Finish>> {
    let mut context = prompt.to_vec();
    loop {
        if made.tokens.len() >= settings.max_tokens {
            return Ok(Ok(Finish::Length));
        }
        if telling.listener.interrupted() {
            return Ok(Ok(Finish::Interrupted));
        }
        let token = match sampler.pick(&logits, &context) {
            Ok(token) => token,
            Err(error) => return Ok(Err(error.into())),
        };
        let stop = settings.stop_tokens.iter().find(|(id, _)| *id == token);
        if let Some((_, spelling)) = stop {
            return Ok(Ok(Finish::Stop(spelling.clone())));
        }
        if settings.ends.contains(&token) {
            return Ok(Ok(Finish::End));
        }
        context.push(token);
        made.tokens.push(token);
        if let Some(stop) = telling.token(token, &mut made.text)? {
            return Ok(Ok(Finish::Stop(stop)));
        }
        if context.len() >= settings.context {
            return Ok(Ok(Finish::Context));
        }
        if made.tokens.len() < settings.max_tokens {
            match session.forward(&[token]) {
                Ok(Some(next)) => next.clone_into(&mut logits),
                Ok(None) => return Ok(Ok(Finish::Interrupted)),
                Err(error) => return Ok(Err(error)),
            }
            made.steps += 1;
        }
    }
}

#[cfg(test)]
mod tests;
