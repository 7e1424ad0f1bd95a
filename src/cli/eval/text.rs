//! Language models on text.

use super::args::{Bos, EvalArgs};
use super::models::{Model, Opened, as_failure};
use super::{EvalError, Exit, Failure, Watch, folder};
use crate::eval::cache::{Cache, Identity, default_dir};
use crate::eval::report::TextReport;
use crate::eval::{Predictor, Protocol, Tally, Windows, measure};
use crate::report::human;
use crate::report::progress::Progress;
use crate::text::{TextError, Tokenizer};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Tokens of a window, where neither --ctx nor the model says less.
const CONTEXT: usize = 2048;

/// A tokenizer's errors as failures.
pub fn failure(error: &TextError) -> Failure {
    Failure::new(Exit::Input, error.to_string()).help(error.help())
}

/// A text file.
pub fn read(path: &Path) -> Result<String, Failure> {
    let bytes = std::fs::read(path).map_err(|error| Failure::read(path, &error))?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let what = format!("{}: byte {at} is not UTF-8", path.display());
        Failure::new(Exit::Input, what).help("save the text as UTF-8")
    })
}

/// The tokenizer that was named, or the first that lies beside a model.
pub fn tokenizer(args: &EvalArgs) -> Result<Tokenizer, Failure> {
    let beside = args
        .reference
        .iter()
        .chain(&args.models)
        .map(|path| folder(path));
    let places: Vec<PathBuf> = match &args.tokenizer {
        Some(place) => vec![place.clone()],
        None => beside.collect(),
    };
    let has =
        |place: &&PathBuf| place.is_file() || place.join(crate::text::tokenizer::FILE).is_file();
    let place = places.iter().find(has).or(places.first());
    let place = place.map_or(Path::new("."), PathBuf::as_path);
    Tokenizer::open(place).map_err(|error| failure(&error))
}

/// Judges language models.
pub fn evaluate(
    args: &EvalArgs,
    progress: &Progress,
    original: Option<(&Opened, &Model)>,
    models: &[Model],
) -> Result<TextReport, Failure> {
    let begun = Instant::now();
    let tokenizer = tokenizer(args)?;
    let texts = tokens(args, &tokenizer)?;
    let protocol = protocol(args, &tokenizer, original.map(|(_, model)| model), models)?;
    let windows = protocol.cut(&texts).map_err(as_failure)?;
    check_tokens(&windows, original.map(|(_, model)| model), models)?;
    let split = args
        .split
        .as_ref()
        .map(|line| format!(", documents apart at lines {line:?}"));
    let split = split.unwrap_or_default();
    progress.stage("Protocol", &(protocol.describe(&windows) + &split));
    let judge = Judge {
        args,
        progress,
        windows: &windows,
        original,
        models,
    };
    let (tally, source) = judge.run(protocol)?;
    let names: Vec<_> = models
        .iter()
        .map(|m| (m.name.clone(), m.without.clone()))
        .collect();
    let mut report = TextReport::new(
        &tally,
        protocol,
        &windows,
        original.map(|(_, m)| &*m.name),
        &names,
    );
    report.split.clone_from(&args.split);
    report.data = args
        .data
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    report.described += &split;
    report.reference_logits = source.map(str::to_string);
    report.seconds = begun.elapsed().as_secs_f64();
    Ok(report)
}

/// The texts' tokens, a list for each file.
fn tokens(args: &EvalArgs, tokenizer: &Tokenizer) -> Result<Vec<Vec<u32>>, Failure> {
    let mut out = Vec::new();
    for path in &args.data {
        let content = read(path)?;
        if content.trim().is_empty() {
            return Err(no_text(path));
        }
        let documents = match &args.split {
            None => vec![content],
            Some(line) => documents(&content, line),
        };
        let mut ids = Vec::new();
        for document in &documents {
            ids.extend(
                tokenizer
                    .encode(document)
                    .map_err(|error| failure(&error))?,
            );
        }
        if ids.is_empty() {
            return Err(no_text(path));
        }
        out.push(ids);
    }
    Ok(out)
}

/// A file that there is nothing to learn from.
pub fn no_text(path: &Path) -> Failure {
    let what = format!("{}: there is no text in it", path.display());
    Failure::new(Exit::Input, what).help("leave it out, or name another with --data")
}

/// What stands between lines like `separator`.
fn documents(content: &str, separator: &str) -> Vec<String> {
    let mut out = vec![Vec::new()];
    for line in content.lines() {
        match (line.trim_end() == separator, out.last_mut()) {
            (false, Some(lines)) => lines.push(line),
            _ => out.push(Vec::new()),
        }
    }
    let joined = out.into_iter().map(|lines| lines.join("\n"));
    joined.filter(|document| !document.is_empty()).collect()
}

/// Tokens that go through the models at once: `--ctx`, or as usual and no more than they have positions.
pub fn context(args: &EvalArgs, usual: usize, positions: Option<usize>) -> Result<usize, Failure> {
    let usual = args.usual.unwrap_or(usual);
    match (args.ctx, positions) {
        (Some(asked), Some(most)) if asked > most => {
            let what = format!("--ctx {asked}: the models have {most} positions");
            Err(Failure::new(Exit::Infeasible, what).help(format!("take at most {most}")))
        }
        (asked, positions) => Ok(asked.unwrap_or(usual.min(positions.unwrap_or(usual)))),
    }
}

fn protocol(
    args: &EvalArgs,
    tokenizer: &Tokenizer,
    original: Option<&Model>,
    models: &[Model],
) -> Result<Protocol, Failure> {
    let positions = original
        .into_iter()
        .chain(models)
        .filter_map(Model::positions)
        .min()
        // ONNX models do not say it themselves.
        .or(tokenizer.special().context);
    let context = context(args, CONTEXT, positions)?;
    let bos = bos(args.bos, tokenizer)?;
    let whole = context.saturating_sub(usize::from(bos.is_some()));
    Ok(Protocol {
        context,
        stride: args.stride.unwrap_or(whole),
        skip: args.skip,
        bos,
        windows: args.windows,
    })
}

/// The token that windows begin with.
pub fn bos(when: Bos, tokenizer: &Tokenizer) -> Result<Option<u32>, Failure> {
    let first = tokenizer.begins_with();
    match when {
        Bos::Never => Ok(None),
        Bos::Always => match first {
            Some(token) => Ok(Some(token)),
            None => Err(Failure::new(
                Exit::Usage,
                "--bos always: the tokenizer has no BOS token",
            )),
        },
        Bos::Auto => {
            let ids = tokenizer
                .encode_with_special("a")
                .map_err(|error| failure(&error))?;
            Ok(first.filter(|token| ids.first() == Some(token)))
        }
    }
}

/// Checks that the tokenizer's tokens are the models'.
fn check_tokens(
    windows: &Windows,
    original: Option<&Model>,
    models: &[Model],
) -> Result<(), Failure> {
    let largest = windows
        .list
        .iter()
        .flat_map(|w| &w.tokens)
        .max()
        .copied()
        .unwrap_or(0);
    for model in original.into_iter().chain(models) {
        let vocabulary = model.predictor()?.map_or(0, |p| p.vocabulary());
        if largest as usize >= vocabulary {
            let error = TextError::Vocabulary {
                token: largest,
                vocabulary,
            };
            let mut failure = failure(&error);
            failure.message = format!("{}: {}", model.name, failure.message);
            return Err(failure);
        }
    }
    Ok(())
}

/// Everything that a measurement takes.
struct Judge<'a> {
    args: &'a EvalArgs,
    progress: &'a Progress,
    windows: &'a Windows,
    original: Option<(&'a Opened, &'a Model)>,
    models: &'a [Model],
}

impl Judge<'_> {
    /// Measures, with logits from the cache where they are there and sound.
    fn run(&self, protocol: Protocol) -> Result<(Tally, Option<&'static str>), Failure> {
        let Some((opened, model)) = self.original else {
            return Ok((self.measure(None).map_err(as_failure)?, None));
        };
        let mut computed = predictor(model)?;
        let Some((cache, identity)) = self.cache(protocol, opened, computed.vocabulary())? else {
            let tally = self.measure(Some(&mut *computed)).map_err(as_failure)?;
            return Ok((tally, Some("computed")));
        };
        if let Some(mut cached) = cache.find(&identity, &model.name) {
            self.progress
                .stage("Cached", &format!("logits of {}", model.name));
            match self.measure(Some(&mut cached)) {
                Err(error @ EvalError::Damaged { .. }) => {
                    self.progress
                        .warn(&format!("{error}; computing them again"));
                    cache.forget(&identity);
                }
                done => return Ok((done.map_err(as_failure)?, Some("cached"))),
            }
        }
        let size = human::size(identity.bytes());
        self.progress.stage(
            "Caching",
            &format!("{size} of logits in {}", cache.dir.display()),
        );
        let tally = match cache.record(&identity, &mut *computed) {
            Ok(mut recorder) => {
                let tally = self.measure(Some(&mut recorder)).map_err(as_failure)?;
                if let Err(error) = recorder.finish() {
                    self.progress
                        .warn(&format!("the logits are not kept: {error}"));
                }
                tally
            }
            Err(error) => {
                self.progress
                    .warn(&format!("the logits are not kept: {error}"));
                self.measure(Some(&mut *predictor(model)?))
                    .map_err(as_failure)?
            }
        };
        Ok((tally, Some("computed")))
    }

    /// The cache, where it is wanted and the logits fit.
    fn cache(
        &self,
        protocol: Protocol,
        opened: &Opened,
        vocabulary: usize,
    ) -> Result<Option<(Cache, Identity)>, Failure> {
        let dir = self.args.cache.clone().or_else(default_dir);
        let Some(dir) = dir.filter(|_| !self.args.no_cache) else {
            return Ok(None);
        };
        let cache = Cache {
            dir,
            limit: self.args.cache_limit,
        };
        let identity = Identity::new(
            &opened.identity()?,
            &format!("exact, {}", crate::exec::instruction_set()),
            protocol,
            self.windows,
            vocabulary,
        );
        if cache.fits(&identity) {
            return Ok(Some((cache, identity)));
        }
        let (size, limit) = (human::size(identity.bytes()), human::size(cache.limit));
        let text =
            format!("nothing: the original's logits take {size}, --cache-limit allows {limit}");
        self.progress.stage("Caching", &text);
        Ok(None)
    }

    fn measure(&self, reference: Option<&mut dyn Predictor>) -> Result<Tally, EvalError> {
        let mut owned = Vec::new();
        for model in self.models {
            let made = model.predictor();
            let found = made.map_err(|failure| EvalError::Protocol(failure.to_string()))?;
            let none = || EvalError::Protocol(format!("{} is no language model", model.name));
            owned.push(found.ok_or_else(none)?);
        }
        let mut candidates: Vec<&mut dyn Predictor> = Vec::new();
        for predictor in &mut owned {
            candidates.push(&mut **predictor);
        }
        let total = self.windows.predictions();
        let mut watch = Watch::new(self.progress, &self.args.talk, total, "tokens");
        let pool = self.models.first().map(|model| model.engine.pool());
        let none = || EvalError::Protocol("no model is named".to_string());
        let pool = pool.ok_or_else(none)?;
        measure(
            reference,
            &mut candidates,
            self.windows,
            pool,
            &mut |done| watch.at(done),
        )
    }
}

fn predictor(model: &Model) -> Result<Box<dyn Predictor + '_>, Failure> {
    let none = || Failure::new(Exit::Input, format!("{} is no language model", model.name));
    model.predictor()?.ok_or_else(none)
}

#[cfg(test)]
mod tests {
    use super::documents;

    #[test]
    fn documents_are_what_stands_between_separators() {
        let text = "a\n\nb\n<|x|>\nc\n<|x|>\n<|x|>\n";
        assert_eq!(documents(text, "<|x|>"), ["a\n\nb", "c"]);
        assert_eq!(documents(text, "---").len(), 1);
        assert!(documents("", "-").is_empty());
    }
}
