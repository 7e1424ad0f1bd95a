//! From files of text to windows of tokens.

use super::failure;
use crate::calib::{self, DataFile, Protocol, Windows};
use crate::cli::args::TalkArgs;
use crate::cli::eval::args::Bos;
use crate::cli::eval::models::{as_failure, folder};
use crate::cli::eval::text;
use crate::cli::eval::watch::Watch;
use crate::cli::{Exit, Failure};
use crate::eval::Whole;
use crate::exec::Engine;
use crate::report::progress::Progress;
use crate::text::Tokenizer;
use crate::weights::Digest;
use std::path::{Path, PathBuf};

/// Name in place of a file for text that the model writes itself.
pub const SELF: &str = "self";

/// Tokens of a window, where neither --ctx nor the model says less.
const CONTEXT: usize = 512;

/// How windows are made.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Text files; [`SELF`] alone is the model's own text.
    pub data: Vec<PathBuf>,
    /// Tokens of a window; 512, or what the model has if that is less, where it says nothing.
    pub context: Option<usize>,
    /// Windows of all files.
    pub windows: usize,
    /// Whether every window begins with BOS.
    pub bos: Bos,
    /// Seed of the model's own text.
    pub seed: u64,
    /// Where the tokenizer is, if not beside the model.
    pub tokenizer: Option<PathBuf>,
}

impl Settings {
    /// The defaults: 64 windows of 512 tokens, or of as many as the model has.
    pub fn new(data: &[PathBuf]) -> Self {
        Self {
            data: data.to_vec(),
            context: None,
            windows: 64,
            bos: Bos::Auto,
            seed: 0,
            tokenizer: None,
        }
    }
}

/// What a model runs on.
pub struct Text {
    /// How the text was cut.
    pub protocol: Protocol,
    /// The files.
    pub data: Vec<DataFile>,
    /// Where the tokenizer was, if not beside the model.
    pub tokenizer: Option<String>,
    /// Token ids.
    pub windows: Windows,
}

/// Reads, tokenizes and cuts the text for a model.
///
/// # Errors
/// A file, or the tokenizer, can't be read; the model has fewer positions than a window.
pub fn prepare(
    model: &Path,
    engine: &Engine,
    settings: &Settings,
    talk: &TalkArgs,
    progress: &Progress,
) -> Result<Text, Failure> {
    let tokenizer = tokenizer(model, settings.tokenizer.as_deref())?;
    let protocol = protocol(engine, &tokenizer, settings, progress)?;
    let place = settings.tokenizer.as_deref();
    let source = (settings.data.as_slice(), place);
    cut((model, engine), source, protocol, talk, progress)
}

/// The tokenizer that was named, or the one beside a model.
fn tokenizer(model: &Path, named: Option<&Path>) -> Result<Tokenizer, Failure> {
    let place = named.map_or_else(|| folder(model), Path::to_path_buf);
    Tokenizer::open(&place).map_err(|error| text::failure(&error))
}

/// Whether the text is the model's own.
pub fn is_own(data: &[PathBuf]) -> bool {
    data == [PathBuf::from(SELF)]
}

/// How a text is cut for a model: what was asked for, and what the model and its tokenizer say.
fn protocol(
    engine: &Engine,
    tokenizer: &Tokenizer,
    settings: &Settings,
    progress: &Progress,
) -> Result<Protocol, Failure> {
    let causal = engine.language_model();
    // ONNX models do not say it themselves.
    let positions = engine.max_positions().or(tokenizer.special().context);
    let context = context(settings.context, positions, progress)?;
    let lines = match causal {
        Ok(_) => false,
        Err(_) => lines_because(engine, tokenizer, progress)?,
    };
    let bos = match lines {
        true => None,
        false => text::bos(settings.bos, tokenizer)?,
    };
    let own = is_own(&settings.data);
    Ok(Protocol {
        context,
        windows: settings.windows,
        lines,
        // Text begins with BOS where the model has one, whatever windows of other texts begin with.
        bos: bos.or_else(|| tokenizer.begins_with().filter(|_| own)),
        // Nothing else is random.
        seed: if own { settings.seed } else { 0 },
    })
}

/// Whether a model without a cache takes lines, since it does not predict the next token either.
fn lines_because(
    engine: &Engine,
    tokenizer: &Tokenizer,
    progress: &Progress,
) -> Result<bool, Failure> {
    let judged = Whole::judge(engine, "the model", tokenizer.size());
    let why = match judged.map_err(as_failure)? {
        Ok(_) => return Ok(false),
        Err(why) => why,
    };
    // One whose output looks like a language model's is told apart aloud.
    if Whole::fits(engine) {
        progress.stage("Lines", &format!("as of an encoder: {why}"));
    }
    Ok(true)
}

/// How a text would be cut by these settings.
///
/// # Errors
/// As [`prepare`].
pub fn protocol_of(
    model: &Path,
    engine: &Engine,
    settings: &Settings,
    progress: &Progress,
) -> Result<Protocol, Failure> {
    let tokenizer = tokenizer(model, settings.tokenizer.as_deref())?;
    protocol(engine, &tokenizer, settings, progress)
}

/// Reads, tokenizes and cuts texts by a protocol; the tokenizer is the one that is named, or the model's.
///
/// # Errors
/// As [`prepare`].
pub fn cut(
    (model, engine): (&Path, &Engine),
    (files, place): (&[PathBuf], Option<&Path>),
    protocol: Protocol,
    talk: &TalkArgs,
    progress: &Progress,
) -> Result<Text, Failure> {
    if is_own(files) {
        return own(model, engine, protocol, talk, progress);
    }
    let tokenizer = tokenizer(model, place)?;
    let mut data = Vec::new();
    let mut contents = Vec::new();
    for path in files {
        let content = text::read(path)?;
        data.push(DataFile {
            name: path.display().to_string(),
            sha256: Digest::of(content.as_bytes()).to_hex(),
        });
        contents.push(content);
    }
    let windows = match protocol.lines {
        true => calib::lines(&token_lines(&contents, &tokenizer, &protocol)?, &protocol),
        false => calib::cut(&tokens(&contents, &tokenizer, &protocol)?, &protocol),
    };
    Ok(Text {
        protocol,
        data,
        tokenizer: place.map(|path| path.display().to_string()),
        windows: windows.map_err(failure)?,
    })
}

/// Tokens of a window: what was asked for, or as many as usual and as the model has.
fn context(
    asked: Option<usize>,
    positions: Option<usize>,
    progress: &Progress,
) -> Result<usize, Failure> {
    match (asked, positions) {
        (Some(asked), Some(most)) if asked > most => {
            let what = format!("--ctx {asked}: the model has {most} positions");
            Err(Failure::new(Exit::Infeasible, what).help(format!("take at most {most}")))
        }
        (None, Some(most)) if most < CONTEXT => {
            let text = format!("of {most} tokens, since the model has no more positions");
            progress.stage("Windows", &text);
            Ok(most)
        }
        (asked, _) => Ok(asked.unwrap_or(CONTEXT)),
    }
}

/// Text that the model writes itself.
fn own(
    model: &Path,
    engine: &Engine,
    protocol: Protocol,
    talk: &TalkArgs,
    progress: &Progress,
) -> Result<Text, Failure> {
    let total = protocol.windows.saturating_mul(protocol.context);
    let mut watch = Watch::new(progress, talk, total, "tokens").called("Writing");
    let name = model.display().to_string();
    let windows = calib::write_own(engine, &name, &protocol, &mut |done| watch.at(done));
    let windows = windows.map_err(failure)?;
    Ok(Text {
        protocol,
        data: vec![DataFile {
            name: SELF.to_string(),
            sha256: calib::token_hash(&windows.list),
        }],
        tokenizer: None,
        windows,
    })
}

/// Bytes of text that a token takes at least, nearly always.
const BYTES_PER_TOKEN: usize = 8;
/// Tokens at the end of a piece that another end could have made otherwise.
const UNSURE: usize = 64;

/// The first tokens of each text, as many as windows can take.
///
/// Tokenizing takes far more memory than its text; a text is long, and its start is all that is used.
fn tokens(
    contents: &[String],
    tokenizer: &Tokenizer,
    protocol: &Protocol,
) -> Result<Vec<Vec<u32>>, Failure> {
    let share = protocol.windows.div_ceil(contents.len().max(1));
    let wanted = share.saturating_mul(protocol.context);
    let of_text = |content: &String| {
        let mut bytes = wanted
            .saturating_add(UNSURE)
            .saturating_mul(BYTES_PER_TOKEN);
        loop {
            let piece = start(content, bytes);
            let ids = tokenizer.encode(piece);
            let mut ids = ids.map_err(|error| text::failure(&error))?;
            if piece.len() == content.len() {
                return Ok(ids);
            }
            ids.truncate(ids.len().saturating_sub(UNSURE));
            if ids.len() >= wanted {
                return Ok(ids);
            }
            bytes = bytes.saturating_mul(2);
        }
    };
    contents.iter().map(of_text).collect()
}

/// About so many bytes from the start of a text, up to the end of a line where there is one.
fn start(content: &str, bytes: usize) -> &str {
    if bytes >= content.len() {
        return content;
    }
    let end = (bytes..content.len()).find(|&at| content.is_char_boundary(at));
    let end = end.unwrap_or(content.len());
    let piece = content.get(..end).unwrap_or(content);
    let line = piece.rfind('\n').filter(|at| *at >= bytes / 2);
    line.and_then(|at| piece.get(..at)).unwrap_or(piece)
}

/// Lines with what the model expects around them, no more than are needed.
fn token_lines(
    contents: &[String],
    tokenizer: &Tokenizer,
    protocol: &Protocol,
) -> Result<Vec<Vec<Vec<u32>>>, Failure> {
    let most = protocol.windows.saturating_mul(protocol.context);
    let of_text = |content: &String| {
        let (mut lines, mut used) = (Vec::new(), 0);
        for line in content.lines().filter(|line| !line.trim().is_empty()) {
            if used >= most {
                break;
            }
            let ids = tokenizer.encode_with_special(line);
            let ids = ids.map_err(|error| text::failure(&error))?;
            used += ids.len().min(protocol.context);
            lines.push(ids);
        }
        Ok(lines)
    };
    contents.iter().map(of_text).collect()
}

#[cfg(test)]
mod tests {
    use super::start;

    #[test]
    fn a_start_ends_with_a_line_and_never_inside_a_character() {
        assert_eq!(start("one\ntwo\nthree", 10), "one\ntwo");
        assert_eq!(start("one\ntwo", 100), "one\ntwo");
        assert_eq!(start("one\ntwo and three", 10), "one\ntwo an");
        assert_eq!(start("ééé", 3), "éé");
        assert_eq!(start("ééé", 5), "ééé");
    }
}
