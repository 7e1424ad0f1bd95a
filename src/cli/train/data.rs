//! From files to examples: text in windows, JSON lines with what counts in them.

use super::args::{HeldOut, TrainArgs};
use crate::cli::eval::models::folder;
use crate::cli::eval::text;
use crate::cli::{Exit, Failure};
use crate::report::progress::Progress;
use crate::text::{ChatTemplate, Message, Tokenizer};
use crate::train::data::{Example, drawn, split};
use crate::weights::Digest;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Name in place of a file for tokens drawn at random.
const RANDOM: &str = "random";
/// Tokens of an example, where neither --ctx nor the model says less.
const CONTEXT: usize = 512;
/// Random examples, where --examples does not say.
const RANDOM_EXAMPLES: usize = 400;

/// Examples to train on and to judge by.
pub struct Data {
    /// To train on.
    pub train: Vec<Example>,
    /// To judge by.
    pub validation: Vec<Example>,
    /// Hash of all tokens and weights.
    pub hash: String,
}

/// What is known of the model that is trained.
#[derive(Clone, Copy)]
pub struct Model {
    /// Number of tokens.
    pub vocabulary: usize,
    /// Most tokens of a sequence.
    pub positions: Option<usize>,
}

/// Reads, tokenizes, cuts and splits.
///
/// # Errors
/// A file, or the tokenizer, can't be read; a line is no example; nothing is left.
pub fn read(args: &TrainArgs, model: Model, progress: &Progress) -> Result<Data, Failure> {
    let mut examples = match args.data.as_slice() == [PathBuf::from(RANDOM)] {
        true => random(args, model)?,
        false => of_files(args, model, progress)?,
    };
    examples.retain(|e| e.weight() > 0.0);
    examples.truncate(args.examples.unwrap_or(usize::MAX));
    if examples.len() < 2 {
        let what = format!("{} examples: training takes two or more", examples.len());
        return Err(Failure::new(Exit::Input, what).help("name more text with --data"));
    }
    let largest = examples.iter().flat_map(|e| &e.tokens).max().copied();
    if let Some(token) = largest.filter(|&t| t as usize >= model.vocabulary) {
        let what = format!(
            "token {token} is beyond the model's vocabulary of {}",
            model.vocabulary
        );
        return Err(Failure::new(Exit::Input, what).help("--tokenizer names the model's own"));
    }
    let bytes = serde_json::to_vec(&examples).unwrap_or_default();
    let count = examples.len() as f64;
    let share = match args.val {
        HeldOut::Share(share) => share,
        HeldOut::Count(n) if (n as f64) < count => n as f64 / count,
        HeldOut::Count(n) => {
            let what = format!("--val {n}: there are {count} examples");
            return Err(Failure::new(Exit::Usage, what).help("leave some to train on"));
        }
    };
    let (train, validation) = split(examples, share, args.seed);
    Ok(Data {
        train,
        validation,
        hash: Digest::of(&bytes).to_hex(),
    })
}

fn context(args: &TrainArgs, positions: Option<usize>) -> Result<usize, Failure> {
    match (args.ctx, positions) {
        (Some(asked), Some(most)) if asked > most => {
            let what = format!("--ctx {asked}: the model has {most} positions");
            Err(Failure::new(Exit::Infeasible, what).help(format!("take at most {most}")))
        }
        (Some(1), _) => Err(Failure::new(
            Exit::Usage,
            "--ctx 1: one token predicts nothing",
        )),
        (Some(asked), _) => Ok(asked),
        (None, most) => Ok(most.unwrap_or(CONTEXT).min(CONTEXT)),
    }
}

/// Tokens that nothing can be learned of: the floor is the logarithm of the vocabulary.
fn random(args: &TrainArgs, model: Model) -> Result<Vec<Example>, Failure> {
    let length = context(args, model.positions)?;
    let count = args.examples.unwrap_or(RANDOM_EXAMPLES);
    let one = |i: usize| {
        let number = |t: usize| ((i as u64) << 32) | t as u64;
        let draw = |t: usize| drawn(model.vocabulary, args.seed ^ 0x5eed, number(t)) as u32;
        Example::whole((0..length).map(draw).collect())
    };
    Ok((0..count).map(one).collect())
}

fn of_files(args: &TrainArgs, model: Model, progress: &Progress) -> Result<Vec<Example>, Failure> {
    let place = args
        .tokenizer
        .clone()
        .unwrap_or_else(|| folder(&args.model));
    let tokenizer = Tokenizer::open(&place).map_err(|error| text::failure(&error))?;
    let length = context(args, model.positions.or(tokenizer.special().context))?;
    let bos = text::bos(args.bos, &tokenizer)?;
    let mut reader = Lines {
        tokenizer: &tokenizer,
        place: &place,
        template: None,
        length,
        cut: 0,
        documents: 0,
        divided: 0,
    };
    let mut examples = Vec::new();
    for path in &args.data {
        let content = text::read(path)?;
        let content = content.trim_start_matches('\u{feff}');
        if is_array(content) {
            let what = format!("{}: is a JSON array", path.display());
            return Err(Failure::new(Exit::Input, what)
                .help("JSON lines have an object on each line and nothing around them"));
        }
        if is_lines(path, content) {
            for (number, line) in content.lines().enumerate() {
                if !line.trim().is_empty() {
                    examples.extend(reader.line(path, number + 1, line)?);
                }
            }
            continue;
        }
        let ids = tokenizer
            .encode(content)
            .map_err(|error| text::failure(&error))?;
        let body = length.saturating_sub(usize::from(bos.is_some())).max(1);
        let windows = ids
            .chunks(body)
            .filter(|w| w.len() == body || ids.len() < body);
        examples.extend(
            windows.map(|window| {
                Example::whole(bos.into_iter().chain(window.iter().copied()).collect())
            }),
        );
    }
    if reader.divided > 0 {
        let text = format!(
            "{} texts are longer than {length} tokens (--ctx), and are several examples",
            reader.divided
        );
        progress.detail(&text);
    }
    if reader.cut > 0 {
        let text = format!(
            "{} examples were cut to {length} tokens (--ctx)",
            reader.cut
        );
        progress.warn(&text);
    }
    Ok(examples)
}

/// Whether a file holds a JSON array of objects.
fn is_array(content: &str) -> bool {
    let inner = content.trim_start().strip_prefix('[');
    inner.is_some_and(|rest| rest.trim_start().starts_with('{'))
}

/// Whether a file holds JSON lines: by its name, or since its first line is an object.
fn is_lines(path: &Path, content: &str) -> bool {
    let extension = path
        .extension()
        .and_then(|e| e.to_str())
        .unwrap_or_default();
    let first = content.lines().find(|line| !line.trim().is_empty());
    let object = |line: &str| serde_json::from_str::<Map<String, Value>>(line).is_ok();
    matches!(extension, "jsonl" | "ndjson") || first.is_some_and(object)
}

struct Lines<'a> {
    tokenizer: &'a Tokenizer,
    place: &'a Path,
    template: Option<ChatTemplate>,
    length: usize,
    /// Examples that were longer.
    cut: usize,
    /// Documents.
    documents: usize,
    /// Documents that were longer, and are several examples.
    divided: usize,
}

impl Lines<'_> {
    fn line(&mut self, path: &Path, number: usize, line: &str) -> Result<Vec<Example>, Failure> {
        let bad = |problem: String| {
            let what = format!("{}: line {number}: {problem}", path.display());
            Failure::new(Exit::Input, what).help(
                "a line is an object with `text`, with `prompt` and `response`, or with `messages`",
            )
        };
        let value: Value =
            serde_json::from_str(line).map_err(|e| bad(format!("is no JSON: {e}")))?;
        let object = value
            .as_object()
            .ok_or_else(|| bad("is no object".to_string()))?;
        let string = |key: &str| object.get(key).and_then(Value::as_str);
        let example = if let Some(text) = string("text") {
            return self.whole(text);
        } else if let (Some(prompt), Some(response)) = (string("prompt"), string("response")) {
            self.pieces(
                &[(prompt.to_string(), 0.0), (response.to_string(), 1.0)],
                true,
            )?
        } else if let Some(Value::Array(messages)) = object.get("messages") {
            let pieces = self.conversation(messages).map_err(bad)?;
            self.pieces(&pieces, false)?
        } else {
            return Err(bad("has none of these fields".to_string()));
        };
        Ok(vec![example])
    }

    /// A document, in pieces of the context's length.
    fn whole(&mut self, text: &str) -> Result<Vec<Example>, Failure> {
        let ids = self.tokenizer.encode_with_special(text);
        let mut ids = ids.map_err(|error| text::failure(&error))?;
        if let Some(end) = self.tokenizer.ends_at().next() {
            ids.push(end);
        }
        self.documents += 1;
        self.divided += usize::from(ids.len() > self.length);
        let pieces = ids.chunks(self.length).filter(|piece| piece.len() > 1);
        let example = |piece: &[u32]| Example {
            document: Some(self.documents),
            ..Example::whole(piece.to_vec())
        };
        Ok(pieces.map(example).collect())
    }

    /// Pieces of text, each with what its tokens count; plain ones end with the end of text.
    ///
    /// The text is tokenized as a whole, as the model will meet it; a token counts as the piece that it
    /// ends in.
    fn pieces(&mut self, pieces: &[(String, f32)], plain: bool) -> Result<Example, Failure> {
        let text: String = pieces.iter().map(|(piece, _)| piece.as_str()).collect();
        let mut end = 0;
        let ends: Vec<(usize, f32)> = pieces
            .iter()
            .map(|(piece, weight)| {
                end += piece.len();
                (end, *weight)
            })
            .collect();
        let weight = |to: usize| {
            let piece = ends.iter().find(|(end, _)| to <= *end);
            piece.filter(|_| to > 0).map_or(0.0, |(_, weight)| *weight)
        };
        let spans = self.tokenizer.encode_spans(&text, plain);
        let spans = spans.map_err(|error| text::failure(&error))?;
        let (mut tokens, mut counts): (Vec<u32>, Vec<f32>) = spans
            .iter()
            .map(|(id, span)| (*id, weight(span.end)))
            .unzip();
        if let (true, Some(end)) = (plain, self.tokenizer.ends_at().next()) {
            tokens.push(end);
            counts.push(1.0);
        }
        if tokens.len() > self.length {
            self.cut += 1;
            tokens.truncate(self.length);
            counts.truncate(self.length);
        }
        // A token counts where it is predicted: at the one before it.
        let weights = counts.into_iter().skip(1).collect();
        Ok(Example {
            tokens,
            weights,
            document: None,
        })
    }

    /// A conversation by the model's template: what the assistant says counts.
    fn conversation(&mut self, messages: &[Value]) -> Result<Vec<(String, f32)>, String> {
        if self.template.is_none() {
            let special = self.tokenizer.special();
            let template = ChatTemplate::open(self.place, special);
            self.template = Some(template.map_err(|error| error.to_string())?);
        }
        let Some(template) = &self.template else {
            return Ok(Vec::new());
        };
        let messages = messages.iter().map(|m| message(m.as_object()));
        let messages = messages.collect::<Result<Vec<Message>, String>>()?;
        let now = SystemTime::now();
        let (mut pieces, mut before) = (Vec::new(), String::new());
        for (i, said) in messages.iter().enumerate() {
            if said.role != "assistant" {
                continue;
            }
            let asked = template
                .render(&messages[..i], now)
                .map_err(|e| e.to_string())?;
            let answered = template
                .render_ended(&messages[..=i], now)
                .map_err(|e| e.to_string())?;
            let (question, answer) = asked
                .strip_prefix(&before)
                .zip(answered.strip_prefix(&asked))
                .ok_or("the chat template spells earlier messages otherwise once later ones are there; give prompt and response instead")?;
            pieces.push((question.to_string(), 0.0));
            pieces.push((answer.to_string(), 1.0));
            before = answered;
        }
        match pieces.is_empty() {
            true => Err("no message is the assistant's".to_string()),
            false => Ok(pieces),
        }
    }
}

fn message(object: Option<&Map<String, Value>>) -> Result<Message, String> {
    let string = |key: &str| object.and_then(|o| o.get(key)).and_then(Value::as_str);
    let content = string("content").ok_or("a message has no text in `content`")?;
    match string("role") {
        Some("system") => Ok(Message::system(content)),
        Some("user") => Ok(Message::user(content)),
        Some("assistant") => Ok(Message::assistant(content)),
        Some(other) => Err(format!(
            "a message of {other:?}; system, user and assistant are known"
        )),
        None => Err("a message has no `role`".to_string()),
    }
}
