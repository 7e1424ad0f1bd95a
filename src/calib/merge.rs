//! Statistics added up.

use std::path::Path;

use super::error::{CalibError, Result};
use super::file::Statistics;
use super::metadata::Metadata;
use super::write::Writer;

/// Adds up statistics of one model, key by key, in the order of the files.
///
/// Memory: the sums of one key. What is written says of all runs where it comes from.
///
/// # Errors
/// [`CalibError::Unlike`] for files of different models, or with diagonals only.
pub fn merge(files: &[Statistics], output: &Path) -> Result<()> {
    let Some((first, others)) = files.split_first() else {
        return Err(CalibError::Protocol(
            "there are no files to add up".to_string(),
        ));
    };
    for other in others {
        check(first, other)?;
    }
    let runs = files.iter().flat_map(|f| f.metadata().runs.clone());
    let metadata = Metadata {
        runs: runs.collect(),
        ..first.metadata().clone()
    };
    let mut writer = Writer::open(output, &metadata, false)?;
    for key in first.keys()? {
        if first.is_counts(&key) {
            let mut counts = first.integers(&format!("{key}.tokens"))?;
            for other in others {
                let more = other.integers(&format!("{key}.tokens"))?;
                counts
                    .iter_mut()
                    .zip(more)
                    .for_each(|(a, b)| *a = a.saturating_add(b));
            }
            writer.counts(&key, &counts)?;
            continue;
        }
        let (mut packed, mut sums) = (first.packed(&key)?, first.key(&key, false)?);
        for other in others {
            let (more, one) = (other.packed(&key)?, other.key(&key, false)?);
            if more.len() != packed.len() || one.diag.len() != sums.diag.len() {
                return Err(unlike(first, other, format!("{key} has two widths")));
            }
            packed.iter_mut().zip(more).for_each(|(a, b)| *a += b);
            sums.diag
                .iter_mut()
                .zip(one.diag)
                .for_each(|(a, b)| *a += b);
            sums.tokens = sums.tokens.saturating_add(one.tokens);
        }
        writer.packed(&key, &packed, &sums.diag, sums.tokens)?;
    }
    writer.finish()
}

fn unlike(a: &Statistics, b: &Statistics, problem: String) -> CalibError {
    CalibError::Unlike {
        a: a.path().display().to_string(),
        b: b.path().display().to_string(),
        problem,
    }
}

fn check(a: &Statistics, b: &Statistics) -> Result<()> {
    let (one, other) = (a.metadata(), b.metadata());
    if one.model.fingerprint != other.model.fingerprint {
        let (one, other) = (&one.model.name, &other.model.name);
        let problem = format!("they are of different models, {one} and {other}");
        return Err(unlike(a, b, problem));
    }
    if one.sites != other.sites {
        return Err(unlike(a, b, "they name different sites".to_string()));
    }
    Ok(())
}
