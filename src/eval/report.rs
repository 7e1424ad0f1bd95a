//! What was measured, as it is printed and stored.

use serde::{Deserialize, Serialize};

use super::outputs::OutputReport;
use super::stats::{self, Distribution, Mean, Paired};
use super::{Judged, Protocol, Tally, Windows};

/// An evaluation, whatever was judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[allow(clippy::large_enum_variant)] // there is one of it in a run
pub enum Evaluation {
    /// A language model on text.
    Text(TextReport),
    /// Outputs of any model on given inputs.
    Outputs(OutputsReport),
}

/// Language models on text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextReport {
    /// The protocol.
    pub protocol: Protocol,
    /// The protocol in words.
    pub described: String,
    /// Lines like this separated documents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// Texts that were read.
    pub data: Vec<String>,
    /// Windows.
    pub windows: usize,
    /// Tokens that were predicted.
    pub predictions: usize,
    /// The reference's own perplexity.
    pub reference: Option<ModelScore>,
    /// The candidates, those with terms left out behind the whole ones.
    pub models: Vec<ModelScore>,
    /// The first model against each other whole one, window by window.
    pub paired: Vec<PairReport>,
    /// Where the reference's logits came from: `computed`, `cached`.
    pub reference_logits: Option<String>,
    /// What was asked for and could not be had.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Wall time, seconds.
    #[serde(deserialize_with = "crate::report::number::or_nan")]
    pub seconds: f64,
}

/// One model on text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelScore {
    /// The model.
    pub name: String,
    /// Kinds of terms that were left out.
    pub without: Vec<String>,
    /// e^(mean nll).
    #[serde(deserialize_with = "crate::report::number::or_nan")]
    pub perplexity: f64,
    /// Perplexity · standard error of the mean nll.
    #[serde(deserialize_with = "crate::report::number::or_nan")]
    pub perplexity_standard_error: f64,
    /// Mean -ln p(token), nats.
    pub nll: Mean,
    /// Share of predictions whose likeliest token was the right one.
    #[serde(deserialize_with = "crate::report::number::or_nan")]
    pub top1_accuracy: f64,
    /// How it differs from the reference.
    pub against: Option<Against>,
}

/// A candidate against the reference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Against {
    /// KL(reference ‖ candidate) of each predicted token, nats.
    pub kl: Distribution,
    /// Share of predictions with the same likeliest token.
    #[serde(deserialize_with = "crate::report::number::or_nan")]
    pub top1_agreement: f64,
    /// √(a (1 - a) / (n - 1)).
    #[serde(deserialize_with = "crate::report::number::or_nan")]
    pub top1_agreement_standard_error: f64,
    /// Perplexity over the reference's.
    #[serde(deserialize_with = "crate::report::number::or_nan")]
    pub perplexity_ratio: f64,
    /// Its standard error, from the paired differences of tokens.
    #[serde(deserialize_with = "crate::report::number::or_nan")]
    pub perplexity_ratio_standard_error: f64,
    /// ln p(token) of the candidate minus the reference's.
    pub delta_log_p: Mean,
    /// Root mean square of the difference of p(token).
    #[serde(deserialize_with = "crate::report::number::or_nan")]
    pub rms_delta_p: f64,
    /// Windows' mean nll, candidate minus reference.
    pub nll_by_window: Option<Paired>,
    /// Mean KL with the error of windows' means, which are more nearly independent than tokens.
    pub kl_by_window: Mean,
}

/// Two candidates, window by window: first minus second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PairReport {
    /// The first model.
    pub first: String,
    /// The second.
    pub second: String,
    /// Windows' mean nll.
    pub nll: Option<Paired>,
    /// Windows' mean KL against the reference.
    pub kl: Option<Paired>,
}

/// Any models on given inputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OutputsReport {
    /// Where the inputs are from.
    pub inputs: Vec<String>,
    /// What was compared with.
    pub reference: String,
    /// The candidates.
    pub models: Vec<OutputsScore>,
    /// What was asked for and could not be had.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Wall time, seconds.
    #[serde(deserialize_with = "crate::report::number::or_nan")]
    pub seconds: f64,
}

/// One model on given inputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OutputsScore {
    /// The model.
    pub name: String,
    /// Kinds of terms that were left out.
    pub without: Vec<String>,
    /// Its outputs.
    pub outputs: Vec<OutputReport>,
}

/// A candidate's name, and the kinds of terms that were left out of it.
pub type Named = (String, Vec<String>);

impl TextReport {
    /// The report of a tally; `names` are the candidates'.
    pub fn new(
        tally: &Tally,
        protocol: Protocol,
        windows: &Windows,
        reference: Option<&str>,
        names: &[Named],
    ) -> Self {
        let own = tally.reference.as_ref();
        let models = names
            .iter()
            .zip(&tally.candidates)
            .map(|((name, without), judged)| {
                let mut score = score(name, judged);
                score.without.clone_from(without);
                score.against = own.map(|own| against(own, judged, &tally.windows));
                score
            });
        let whole: Vec<(&str, &Judged)> = names
            .iter()
            .zip(&tally.candidates)
            .filter(|((_, without), _)| without.is_empty())
            .map(|((name, _), judged)| (name.as_str(), judged))
            .collect();
        let pair = |(first, a): (&str, &Judged), (second, b): (&str, &Judged)| PairReport {
            first: first.to_string(),
            second: second.to_string(),
            nll: paired(&a.nll, &b.nll, &tally.windows),
            kl: own.and_then(|_| paired(&a.divergence, &b.divergence, &tally.windows)),
        };
        let paired = match whole.split_first() {
            Some((first, others)) => others.iter().map(|other| pair(*first, *other)).collect(),
            None => Vec::new(),
        };
        Self {
            protocol,
            described: protocol.describe(windows),
            split: None,
            data: Vec::new(),
            windows: windows.list.len(),
            predictions: windows.predictions(),
            reference: own.and_then(|own| reference.map(|name| score(name, own))),
            models: models.collect(),
            paired,
            reference_logits: None,
            notes: Vec::new(),
            seconds: 0.0,
        }
    }
}

fn score(name: &str, judged: &Judged) -> ModelScore {
    let nll = stats::mean(&judged.nll);
    let perplexity = nll.mean.exp();
    ModelScore {
        name: name.to_string(),
        without: Vec::new(),
        perplexity,
        perplexity_standard_error: perplexity * nll.standard_error,
        nll,
        top1_accuracy: judged.right as f64 / judged.nll.len() as f64,
        against: None,
    }
}

fn against(reference: &Judged, candidate: &Judged, windows: &[usize]) -> Against {
    let pairs = || reference.nll.iter().zip(&candidate.nll);
    let delta: Vec<f64> = pairs().map(|(r, c)| r - c).collect();
    let delta_log_p = stats::mean(&delta);
    let squares: f64 = pairs()
        .map(|(r, c)| ((-c).exp() - (-r).exp()).powi(2))
        .sum();
    let n = candidate.nll.len() as f64;
    let agreement = candidate.agree as f64 / n;
    let ratio = (-delta_log_p.mean).exp();
    Against {
        kl: stats::distribution(&candidate.divergence),
        top1_agreement: agreement,
        top1_agreement_standard_error: (agreement * (1.0 - agreement) / (n - 1.0)).sqrt(),
        perplexity_ratio: ratio,
        perplexity_ratio_standard_error: ratio * delta_log_p.standard_error,
        delta_log_p,
        rms_delta_p: (squares / n).sqrt(),
        nll_by_window: paired(&candidate.nll, &reference.nll, windows),
        kl_by_window: stats::mean(&by_window(&candidate.divergence, windows)),
    }
}

fn paired(a: &[f64], b: &[f64], windows: &[usize]) -> Option<Paired> {
    stats::paired(&by_window(a, windows), &by_window(b, windows))
}

/// Means of each window's values.
fn by_window(values: &[f64], windows: &[usize]) -> Vec<f64> {
    let mut rest = values;
    let take = |&n: &usize| {
        let (own, behind) = rest.split_at(n.min(rest.len()));
        rest = behind;
        own.iter().sum::<f64>() / n as f64
    };
    windows.iter().map(take).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let judged = |nll: &[f64], kl: &[f64]| Judged {
            nll: nll.to_vec(),
            right: 1,
            divergence: kl.to_vec(),
            agree: 3,
        };
        let tally = Tally {
            reference: Some(judged(&[1.0, 2.0, 3.0, 2.0], &[])),
            candidates: vec![
                judged(&[1.5, 2.0, 3.5, 2.0], &[0.1, 0.2, 0.3, 0.4]),
                judged(&[2.0, 2.0, 4.0, 2.0], &[0.2, 0.4, 0.6, 0.8]),
            ],
            windows: vec![2, 2],
        };
        let protocol = Protocol {
            context: 3,
            stride: 3,
            skip: 0,
            bos: None,
            windows: None,
        };
        let windows = protocol.cut(&[(0..6).collect()]).expect("cut");
        let names = [("a".to_string(), vec![]), ("b".to_string(), vec![])];
        let report = TextReport::new(&tally, protocol, &windows, Some("r"), &names);
        assert_eq!(
            report.reference.as_ref().map(|r| r.perplexity),
            Some(2f64.exp())
        );
        let a = report.models[0].against.as_ref().expect("compared");
        assert!((a.kl.mean - 0.25).abs() < 1e-12 && a.kl.max == 0.4);
        assert!((a.perplexity_ratio - 0.25f64.exp()).abs() < 1e-12);
        assert_eq!((a.delta_log_p.mean, a.top1_agreement), (-0.25, 0.75));
        let windows = a.nll_by_window.expect("two windows");
        assert_eq!((windows.difference, windows.standard_error), (0.25, 0.0));
        let pair = &report.paired[0];
        let kl = pair.kl.expect("a reference");
        assert!((kl.difference + 0.25).abs() < 1e-12);
        assert_eq!((kl.first_lower, kl.second_lower), (2, 0));
        let json = serde_json::to_string(&Evaluation::Text(report.clone())).expect("JSON");
        assert!(
            json.starts_with("{\"kind\":\"text\",\"protocol\":{\"context\":3"),
            "{json}"
        );
    }
}
