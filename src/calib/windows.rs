//! Texts cut into windows, windows put into batches.

use std::ops::Range;

use super::error::{CalibError, Result};
use super::metadata::Protocol;

/// Tokens that run at once: enough for full speed, and a number that results depend on (f32 sums).
const BATCH: usize = 2048;

/// What runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Windows {
    /// Token ids of each window.
    pub list: Vec<Vec<u32>>,
    /// Windows of each text.
    pub of_text: Vec<usize>,
}

impl Windows {
    /// Tokens of all windows.
    pub fn tokens(&self) -> u64 {
        self.list.iter().map(|w| w.len() as u64).sum()
    }
}

/// Cuts texts into consecutive windows from their starts, and takes from each in turn.
///
/// The windows are shared out evenly; a text that is too short leaves its share unused. What does
/// not fill a text's last window is left out, but a text shorter than a window is one window.
///
/// # Errors
/// [`CalibError::Protocol`] for a context without room for text, or texts without tokens.
pub fn cut(texts: &[Vec<u32>], protocol: &Protocol) -> Result<Windows> {
    let ahead = usize::from(protocol.bos.is_some());
    let body = protocol.context.saturating_sub(ahead);
    if body == 0 || protocol.windows == 0 {
        let what = format!(
            "{} windows of {} tokens hold no text",
            protocol.windows, protocol.context
        );
        return Err(CalibError::Protocol(what));
    }
    let of_text = |(index, text): (usize, &Vec<u32>)| -> Vec<Vec<u32>> {
        let share = protocol.windows / texts.len();
        let share = share + usize::from(index < protocol.windows % texts.len());
        let whole = (text.len() / body).max(usize::from(!text.is_empty()));
        let pieces = text.chunks(body).take(share.min(whole));
        let bos = |piece: &[u32]| {
            protocol
                .bos
                .into_iter()
                .chain(piece.iter().copied())
                .collect()
        };
        pieces.map(bos).collect()
    };
    interleave(texts.iter().enumerate().map(of_text).collect())
}

/// Takes lines of each text in turn until they have as many tokens as the protocol's windows.
///
/// Lines longer than the context are cut off; lines of one length stand together, so that they run
/// together.
///
/// # Errors
/// [`CalibError::Protocol`] where there is no line.
pub fn lines(texts: &[Vec<Vec<u32>>], protocol: &Protocol) -> Result<Windows> {
    let most = protocol.windows.saturating_mul(protocol.context);
    let share = most.div_ceil(texts.len().max(1));
    let of_text = |lines: &Vec<Vec<u32>>| -> Vec<Vec<u32>> {
        let mut used = 0;
        let mut taken = Vec::new();
        for line in lines.iter().filter(|line| !line.is_empty()) {
            if used >= share {
                break;
            }
            let line: Vec<u32> = line.iter().copied().take(protocol.context).collect();
            used += line.len();
            taken.push(line);
        }
        taken
    };
    let mut windows = interleave(texts.iter().map(of_text).collect())?;
    windows.list.sort_by_key(Vec::len);
    Ok(windows)
}

fn interleave(texts: Vec<Vec<Vec<u32>>>) -> Result<Windows> {
    let of_text: Vec<usize> = texts.iter().map(Vec::len).collect();
    let longest = of_text.iter().copied().max().unwrap_or(0);
    let mut list = Vec::with_capacity(of_text.iter().sum());
    for at in 0..longest {
        list.extend(texts.iter().filter_map(|windows| windows.get(at).cloned()));
    }
    match list.is_empty() {
        true => Err(CalibError::Protocol("the text has no tokens".to_string())),
        false => Ok(Windows { list, of_text }),
    }
}

/// Consecutive windows of one length that run at once: up to 2048 tokens, or one window.
pub fn batches(windows: &[Vec<u32>]) -> Vec<Range<usize>> {
    let mut out: Vec<Range<usize>> = Vec::new();
    for (at, window) in windows.iter().enumerate() {
        let joins = |range: &Range<usize>| {
            let same = windows
                .get(range.start)
                .is_some_and(|w| w.len() == window.len());
            same && (range.len() + 1) * window.len() <= BATCH
        };
        match out.last_mut() {
            Some(range) if joins(range) => range.end = at + 1,
            _ => out.push(at..at + 1),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn protocol(context: usize, windows: usize, bos: Option<u32>) -> Protocol {
        Protocol {
            context,
            windows,
            lines: false,
            bos,
            seed: 0,
        }
    }

    #[test]
    fn texts_take_turns() {
        let texts = [(10..22).collect(), (50..55).collect(), Vec::new()];
        let found = cut(&texts, &protocol(4, 6, None)).expect("cut");
        assert_eq!(
            found.list,
            [
                vec![10, 11, 12, 13],
                vec![50, 51, 52, 53],
                vec![14, 15, 16, 17]
            ]
        );
        assert_eq!(found.of_text, [2, 1, 0]);
        let found = cut(&texts[..1], &protocol(4, 2, Some(1))).expect("cut");
        assert_eq!(found.list, [[1, 10, 11, 12], [1, 13, 14, 15]]);
        let short = cut(&texts[1..2], &protocol(512, 64, None)).expect("cut");
        assert_eq!(short.list, [[50, 51, 52, 53, 54]]);
        assert_eq!(short.tokens(), 5);
    }

    #[test]
    fn nothing_to_run_is_refused() {
        assert!(cut(&[Vec::new()], &protocol(4, 2, None)).is_err());
        assert!(cut(&[vec![1]], &protocol(1, 2, Some(1))).is_err());
        assert!(cut(&[vec![1]], &protocol(4, 0, None)).is_err());
        assert!(cut(&[], &protocol(4, 2, None)).is_err());
        assert!(lines(&[vec![vec![]]], &protocol(4, 2, None)).is_err());
    }

    #[test]
    fn lines_of_one_length_run_together() {
        let text = vec![vec![1, 2, 3, 4, 5], vec![6], vec![7, 8], vec![9], vec![1]];
        let found = lines(&[text], &protocol(4, 2, None)).expect("cut");
        assert_eq!(found.list, [vec![6], vec![9], vec![7, 8], vec![1, 2, 3, 4]]);
        assert_eq!(batches(&found.list), [0..2, 2..3, 3..4]);
        let many = vec![vec![0; 512]; 9];
        assert_eq!(batches(&many), [0..4, 4..8, 8..9]);
        assert_eq!(batches(&vec![vec![0; 5000]; 2]), [0..1, 1..2]);
    }
}
