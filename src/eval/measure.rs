//! All models through the same windows, side by side.

use std::ops::Range;
use std::sync::OnceLock;

use super::row::{Pair, Prediction, score, score_pair};
use super::window::{Window, Windows};
use super::{EvalError, Predictor, Result};
use crate::exec::Pool;

/// Most logits of the reference that are held at once: 64 MiB.
const HELD: usize = 16 << 20;

/// What was seen of one model, prediction by prediction in the order of the text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Judged {
    /// -ln p(token), nats.
    pub nll: Vec<f64>,
    /// Predictions whose likeliest token was the right one.
    pub right: usize,
    /// KL(reference ‖ this), nats; empty without a reference.
    pub divergence: Vec<f64>,
    /// Predictions whose likeliest token was the reference's.
    pub agree: usize,
}

impl Judged {
    fn add(&mut self, prediction: Prediction, token: usize) {
        self.nll.push(prediction.nll);
        self.right += usize::from(prediction.top == token);
    }

    fn add_pair(&mut self, pair: &Pair, token: usize) {
        self.add(pair.candidate, token);
        self.divergence.push(pair.divergence);
        self.agree += usize::from(pair.candidate.top == pair.reference.top);
    }
}

/// What was seen of all models.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    /// The reference, where there is one.
    pub reference: Option<Judged>,
    /// The candidates, in their order.
    pub candidates: Vec<Judged>,
    /// Predictions of each window.
    pub windows: Vec<usize>,
}

/// Positions that are taken at once, so that the reference's logits stay within 64 MiB.
///
/// Part of what logits depend on, in their last bits: a cache has to have been written in the same steps.
pub fn block(vocabulary: usize) -> usize {
    (HELD / vocabulary.max(1)).clamp(16, 256)
}

/// Runs all models over all windows.
///
/// A block of positions at a time goes through the reference, whose logits are held, then through
/// each candidate, whose logits are scored as they come. `progress` is told the predictions made so
/// far. Scores are computed on `pool` and added in order: nothing depends on the number of threads.
///
/// Memory: the block, and each model's KV cache of one window.
///
/// # Errors
/// A model fails, was interrupted, or gives logits that are no numbers; vocabularies differ.
pub fn measure(
    mut reference: Option<&mut dyn Predictor>,
    candidates: &mut [&mut dyn Predictor],
    windows: &Windows,
    pool: &Pool,
    progress: &mut dyn FnMut(usize),
) -> Result<Tally> {
    alike(reference.as_deref(), candidates)?;
    let mut tally = Tally {
        reference: reference.is_some().then(Judged::default),
        candidates: vec![Judged::default(); candidates.len()],
        windows: windows.list.iter().map(Window::predictions).collect(),
    };
    let vocabulary = reference.as_deref().map(|r| r.vocabulary());
    let vocabulary = vocabulary.or(candidates.first().map(|c| c.vocabulary()));
    let step = block(vocabulary.unwrap_or(0));
    let mut held = Vec::new();
    let mut done = 0;
    for (index, window) in windows.list.iter().enumerate() {
        // The last token predicts nothing.
        let seen = window
            .tokens
            .get(..window.tokens.len() - 1)
            .unwrap_or_default();
        if let Some(reference) = reference.as_deref_mut() {
            reference.begin(seen)?;
        }
        for candidate in candidates.iter_mut() {
            candidate.begin(seen)?;
        }
        let mut start = window.first - 1;
        while start < seen.len() {
            let range = start..(start + step).min(seen.len());
            let place = Place {
                window,
                index,
                pool,
            };
            held.clear();
            if let (Some(reference), Some(judged)) =
                (reference.as_deref_mut(), &mut tally.reference)
            {
                reference.rows(range.clone(), &mut |_, logits| {
                    held.extend_from_slice(logits)
                })?;
                place.alone(
                    reference.name(),
                    reference.vocabulary(),
                    range.start,
                    &held,
                    judged,
                )?;
            }
            for (candidate, judged) in candidates.iter_mut().zip(&mut tally.candidates) {
                place.candidate(*candidate, &held, range.clone(), judged)?;
            }
            done += range.len();
            progress(done);
            start = range.end;
        }
    }
    Ok(tally)
}

fn alike(reference: Option<&dyn Predictor>, candidates: &[&mut dyn Predictor]) -> Result<()> {
    let all: Vec<&dyn Predictor> = reference
        .into_iter()
        .chain(candidates.iter().map(|c| &**c))
        .collect();
    let Some(first) = all.first() else {
        return Ok(());
    };
    let unlike = all.iter().find(|p| p.vocabulary() != first.vocabulary());
    match unlike {
        None => Ok(()),
        Some(other) => Err(EvalError::Unlike {
            a: first.name().to_string(),
            b: other.name().to_string(),
            problem: format!(
                "they know {} and {} tokens",
                first.vocabulary(),
                other.vocabulary()
            ),
        }),
    }
}

/// Where in the text scores belong.
struct Place<'a> {
    window: &'a Window,
    index: usize,
    pool: &'a Pool,
}

impl Place<'_> {
    /// Scores a model's rows by themselves.
    fn alone(
        &self,
        name: &str,
        vocabulary: usize,
        start: usize,
        logits: &[f32],
        judged: &mut Judged,
    ) -> Result<()> {
        let rows: Vec<&[f32]> = logits.chunks_exact(vocabulary.max(1)).collect();
        let scored = each(self.pool, rows.len(), |i| {
            rows.get(i)
                .and_then(|row| score(row, self.token(start + i)))
        });
        for (i, prediction) in scored.into_iter().enumerate() {
            let prediction = prediction.ok_or_else(|| self.broken(name, start + i))?;
            judged.add(prediction, self.token(start + i));
        }
        Ok(())
    }

    /// Runs a candidate and scores its rows against the reference's, where there are any.
    fn candidate(
        &self,
        candidate: &mut dyn Predictor,
        held: &[f32],
        range: Range<usize>,
        judged: &mut Judged,
    ) -> Result<()> {
        let (name, width) = (candidate.name().to_string(), candidate.vocabulary().max(1));
        let mut outcome = Ok(());
        candidate.rows(range.clone(), &mut |first, logits| {
            if outcome.is_err() {
                return;
            }
            let start = range.start + first;
            outcome = match held.get(first * width..first * width + logits.len()) {
                Some(held) if !held.is_empty() => {
                    self.pair(&name, width, start, held, logits, judged)
                }
                _ => self.alone(&name, width, start, logits, judged),
            };
        })?;
        outcome
    }

    fn pair(
        &self,
        name: &str,
        width: usize,
        start: usize,
        held: &[f32],
        logits: &[f32],
        judged: &mut Judged,
    ) -> Result<()> {
        let rows: Vec<(&[f32], &[f32])> = held
            .chunks_exact(width)
            .zip(logits.chunks_exact(width))
            .collect();
        let scored = each(self.pool, rows.len(), |i| {
            rows.get(i)
                .and_then(|(r, c)| score_pair(r, c, self.token(start + i)))
        });
        for (i, pair) in scored.into_iter().enumerate() {
            let pair = pair.ok_or_else(|| self.broken(name, start + i))?;
            judged.add_pair(&pair, self.token(start + i));
        }
        Ok(())
    }

    /// The token that a position predicts.
    fn token(&self, position: usize) -> usize {
        let token = self.window.tokens.get(position + 1).copied();
        token.map_or(usize::MAX, |t| t as usize)
    }

    fn broken(&self, name: &str, position: usize) -> EvalError {
        EvalError::NotFinite {
            model: name.to_string(),
            window: self.index,
            position,
        }
    }
}

/// `work(i)` for each i, in parallel; results in order.
fn each<T: Send + Sync>(
    pool: &Pool,
    n: usize,
    work: impl Fn(usize) -> Option<T> + Sync,
) -> Vec<Option<T>> {
    let slots: Vec<OnceLock<Option<T>>> = std::iter::repeat_with(OnceLock::new).take(n).collect();
    pool.run(n, |i| {
        if let Some(slot) = slots.get(i) {
            // Each index comes once.
            let _ = slot.set(work(i));
        }
    });
    slots
        .into_iter()
        .map(|slot| slot.into_inner().flatten())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::Protocol;

    /// Logits that depend on the last token and a knob.
    struct Fake {
        window: Vec<u32>,
        bend: f32,
        chunk: usize,
    }

    const WIDTH: usize = 37;

    impl Fake {
        fn new(bend: f32, chunk: usize) -> Self {
            Self {
                window: Vec::new(),
                bend,
                chunk,
            }
        }

        fn row(&self, position: usize) -> Vec<f32> {
            let token = self.window[position] as f32;
            (0..WIDTH)
                .map(|i| {
                    ((i as f32 + 1.3) * (token + 0.7)).sin() * 3.0 + self.bend * (i % 5) as f32
                })
                .collect()
        }
    }

    impl Predictor for Fake {
        fn vocabulary(&self) -> usize {
            WIDTH
        }

        fn name(&self) -> &str {
            "fake"
        }

        fn begin(&mut self, tokens: &[u32]) -> Result<()> {
            self.window = tokens.to_vec();
            Ok(())
        }

        fn rows(&mut self, range: Range<usize>, each: &mut dyn FnMut(usize, &[f32])) -> Result<()> {
            let all: Vec<usize> = range.clone().collect();
            for part in all.chunks(self.chunk) {
                let logits: Vec<f32> = part.iter().flat_map(|&p| self.row(p)).collect();
                each(part[0] - range.start, &logits);
            }
            Ok(())
        }
    }

    fn windows(context: usize, stride: usize) -> Windows {
        let text: Vec<u32> = (0..1000u32).map(|i| i * i % WIDTH as u32).collect();
        let protocol = Protocol {
            context,
            stride,
            skip: 0,
            bos: None,
            windows: None,
        };
        protocol.cut(&[text]).expect("cut")
    }

    fn run(bends: &[f32], chunk: usize, threads: usize, windows: &Windows) -> Tally {
        let mut reference = Fake::new(0.0, 1000);
        let mut fakes: Vec<Fake> = bends.iter().map(|&b| Fake::new(b, chunk)).collect();
        let mut candidates: Vec<&mut dyn Predictor> =
            fakes.iter_mut().map(|f| f as &mut dyn Predictor).collect();
        let pool = Pool::new(threads);
        let mut told = 0;
        let tally = measure(
            Some(&mut reference),
            &mut candidates,
            windows,
            &pool,
            &mut |n| told = n,
        );
        assert_eq!(told, windows.predictions());
        tally.expect("measured")
    }

    #[test]
    fn the_same_model_is_the_same() {
        let windows = windows(300, 300);
        let tally = run(&[0.0, 0.5], 7, 2, &windows);
        let reference = tally.reference.expect("a reference");
        assert_eq!(tally.candidates[0].nll, reference.nll);
        assert_eq!(reference.nll.len(), windows.predictions());
        assert!(tally.candidates[0].divergence.iter().all(|&kl| kl == 0.0));
        assert_eq!(tally.candidates[0].agree, windows.predictions());
        assert!(tally.candidates[1].divergence.iter().sum::<f64>() > 1.0);
    }

    #[test]
    fn neither_threads_nor_chunks_matter() {
        let windows = windows(300, 100);
        let one = run(&[0.1], 1000, 1, &windows);
        for (chunk, threads) in [(1, 2), (13, 3), (256, 4)] {
            assert_eq!(one, run(&[0.1], chunk, threads, &windows));
        }
    }

    #[test]
    fn numbers_are_the_textbooks() {
        let windows = windows(50, 50);
        let tally = run(&[0.2], 16, 2, &windows);
        let mut fake = Fake::new(0.2, 16);
        let window = &windows.list[3];
        fake.begin(&window.tokens).expect("begun");
        let row: Vec<f64> = fake.row(10).iter().map(|&x| f64::from(x)).collect();
        let z: f64 = row.iter().map(|x| x.exp()).sum();
        let expected = z.ln() - row[window.tokens[11] as usize];
        let at = 3 * 49 + 10;
        assert!((tally.candidates[0].nll[at] - expected).abs() < 1e-6);
    }
}
