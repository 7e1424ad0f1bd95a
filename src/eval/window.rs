//! The protocol: which tokens are predicted, and from which.

use serde::{Deserialize, Serialize};

use super::{EvalError, Result};
use crate::report::human::plural;

/// How text is cut into windows. Perplexities compare only under the same protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protocol {
    /// Tokens of a window, the BOS token included.
    pub context: usize,
    /// Tokens from one window's start to the next one's, and predictions that each but the first adds.
    pub stride: usize,
    /// Predictions at the start of every window that do not count.
    pub skip: usize,
    /// Token put in front of every window.
    pub bos: Option<u32>,
    /// Most windows; the first ones count.
    pub windows: Option<usize>,
}

/// One window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// What the model sees, BOS included.
    pub tokens: Vec<u32>,
    /// Position of the first token that is predicted; every one behind it is too.
    pub first: usize,
}

impl Window {
    /// Number of predictions.
    pub fn predictions(&self) -> usize {
        self.tokens.len().saturating_sub(self.first)
    }
}

/// All windows of some texts.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Windows {
    /// In the order of the text.
    pub list: Vec<Window>,
    /// Tokens of the text.
    pub tokens: usize,
    /// Tokens at the end of texts that fill no window, or lie behind the last one asked for.
    pub left_out: usize,
}

impl Windows {
    /// Number of predictions.
    pub fn predictions(&self) -> usize {
        self.list.iter().map(Window::predictions).sum()
    }
}

impl Protocol {
    /// Cuts texts into windows; none goes across two texts.
    ///
    /// A text shorter than a window is one window; otherwise what does not fill the last window is
    /// left out. In the first window every token but the first is predicted, and the first too where
    /// a BOS token stands before it; further windows predict their last `stride` tokens. What
    /// `skip` leaves out at the start of a window is seen, but not counted.
    ///
    /// # Errors
    /// [`EvalError::Protocol`] for a context or stride that cannot be;
    /// [`EvalError::TooShort`] where there is nothing to predict.
    pub fn cut(&self, texts: &[Vec<u32>]) -> Result<Windows> {
        let ahead = usize::from(self.bos.is_some());
        let body = self.context.saturating_sub(ahead);
        if self.context < 2 {
            let what = format!(
                "a context of {} leaves nothing to predict from",
                self.context
            );
            return Err(EvalError::Protocol(what));
        }
        if self.windows == Some(0) {
            let what = "0 windows leave nothing to predict".to_string();
            return Err(EvalError::Protocol(what));
        }
        if self.stride == 0 || self.stride > body {
            let what = format!(
                "a stride of {} does not fit windows of {body} tokens of text",
                self.stride
            );
            return Err(EvalError::Protocol(what));
        }
        if self.skip >= self.context - 1 {
            let what = format!(
                "a window of {} has no {} predictions to leave out",
                self.context, self.skip
            );
            return Err(EvalError::Protocol(what));
        }
        let mut out = Windows {
            tokens: texts.iter().map(Vec::len).sum(),
            ..Windows::default()
        };
        let most = self.windows.unwrap_or(usize::MAX);
        for text in texts {
            let whole = text.len().saturating_sub(body) / self.stride + 1;
            let mut seen = 0;
            for index in 0..whole.min(most.saturating_sub(out.list.len())) {
                let start = index * self.stride;
                let end = (start + body).min(text.len());
                let tokens = text.get(start..end).unwrap_or_default();
                let tokens: Vec<u32> = self.bos.into_iter().chain(tokens.iter().copied()).collect();
                let first = match index {
                    0 => 1,
                    _ => tokens.len().saturating_sub(self.stride).max(1),
                };
                let first = first.max(1 + self.skip);
                seen = end;
                if tokens.len() > first {
                    out.list.push(Window { tokens, first });
                }
            }
            out.left_out += text.len() - seen;
        }
        match out.list.is_empty() {
            true => Err(EvalError::TooShort(out.tokens)),
            false => Ok(out),
        }
    }

    /// The protocol in words, for people who compare.
    pub fn describe(&self, windows: &Windows) -> String {
        let ahead = usize::from(self.bos.is_some());
        let overlap = match self.stride + ahead >= self.context {
            true => "not overlapping".to_string(),
            false => format!("stride {}, only the new positions count", self.stride),
        };
        let bos = match self.bos {
            Some(token) => format!("BOS (token {token}) in front of each"),
            None => "no BOS".to_string(),
        };
        let skip = match self.skip {
            0 => String::new(),
            n => format!(
                "the first {} of each not counted, ",
                plural(n, "prediction")
            ),
        };
        let first = match self.windows {
            Some(most) if most == windows.list.len() => "the first ",
            _ => "",
        };
        format!(
            "context {}, {first}{}, {overlap}, {bos}, {skip}{} ({} of {} left out)",
            self.context,
            plural(windows.list.len(), "window"),
            plural(windows.predictions(), "prediction"),
            windows.left_out,
            plural(windows.tokens, "token"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn protocol(context: usize, stride: usize, bos: Option<u32>) -> Protocol {
        Protocol {
            context,
            stride,
            skip: 0,
            bos,
            windows: None,
        }
    }

    fn text(n: u32) -> Vec<Vec<u32>> {
        vec![(10..10 + n).collect()]
    }

    #[test]
    fn without_bos_the_first_token_of_a_window_is_not_predicted() {
        let cut = protocol(4, 4, None).cut(&text(10)).expect("cut");
        let tokens: Vec<&[u32]> = cut.list.iter().map(|w| &*w.tokens).collect();
        assert_eq!(tokens, [[10, 11, 12, 13], [14, 15, 16, 17]]);
        assert_eq!((cut.predictions(), cut.left_out), (6, 2));
    }

    #[test]
    fn with_bos_every_token_is_predicted() {
        let cut = protocol(4, 3, Some(1)).cut(&text(6)).expect("cut");
        let tokens: Vec<&[u32]> = cut.list.iter().map(|w| &*w.tokens).collect();
        assert_eq!(tokens, [[1, 10, 11, 12], [1, 13, 14, 15]]);
        assert_eq!((cut.predictions(), cut.left_out), (6, 0));
    }

    #[test]
    fn the_published_count_of_wikitext() {
        let most = Protocol {
            windows: Some(92),
            ..protocol(2048, 2048, None)
        };
        let cut = most.cut(&text(290_000)).expect("cut");
        assert_eq!((cut.list.len(), cut.predictions()), (92, 188_324));
        assert!(
            most.describe(&cut)
                .contains("the first 92 windows, not overlapping, no BOS, 188324")
        );
    }

    #[test]
    fn the_second_half_of_each_window() {
        // llama.cpp at n_ctx 512: 255 predictions of each window.
        let half = Protocol {
            skip: 256,
            ..protocol(512, 512, None)
        };
        let cut = half.cut(&text(1100)).expect("cut");
        assert_eq!((cut.list.len(), cut.predictions()), (2, 510));
        assert!(
            half.describe(&cut)
                .contains("the first 256 predictions of each not counted")
        );
        let none = Protocol { skip: 511, ..half };
        assert!(none.cut(&text(1100)).is_err());
    }

    #[test]
    fn short_texts_and_bad_settings() {
        let cut = protocol(512, 512, None)
            .cut(&text(5))
            .expect("one short window");
        assert_eq!((cut.list.len(), cut.predictions()), (1, 4));
        let short = |p: Protocol, n| p.cut(&text(n)).expect_err("refused").to_string();
        assert!(short(protocol(8, 8, None), 1).contains("takes two"));
        assert!(short(protocol(1, 1, None), 9).contains("context of 1"));
        assert!(short(protocol(8, 8, Some(1)), 9).contains("stride of 8"));
        assert!(short(protocol(8, 0, None), 9).contains("stride of 0"));
    }

    proptest! {
        #[test]
        fn each_token_is_predicted_once(
            n in 1u32..300, context in 2usize..40, stride in 1usize..40, bos in any::<bool>(),
        ) {
            let bos = bos.then_some(1);
            let body = context - usize::from(bos.is_some());
            let Ok(cut) = protocol(context, stride.min(body), bos).cut(&text(n)) else {
                return Ok(());
            };
            let targets: Vec<u32> = cut.list.iter().flat_map(|w| w.tokens[w.first..].to_vec()).collect();
            let mut once = targets.clone();
            once.sort_unstable();
            once.dedup();
            prop_assert_eq!(&once, &targets);
            // Overlapping windows miss nothing but what comes before the first and behind the last.
            if stride < body && bos.is_none() {
                prop_assert_eq!(targets.len() + 1 + cut.left_out, n as usize);
            }
        }
    }
}
