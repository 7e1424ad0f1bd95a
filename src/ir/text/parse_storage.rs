//! Text to module: where a weight's bytes are.

use std::sync::Arc;

use super::cursor::Cursor;
use super::parse::Result;
use crate::ir::{Encoding, Gain, Rotated, Storage, Synthetic, Turn};
use crate::weights::DType;

/// What stands behind a weight's `=`.
pub(super) fn storage(c: &mut Cursor<'_>) -> Result<Storage> {
    if c.eat("concat") {
        let mut parts = Vec::new();
        c.list("(", ")", |c| {
            let at = c.position();
            let part = piece(c)?;
            let part = part.ok_or_else(|| c.error_at(at, "expected file(…) or hex\"…\""))?;
            parts.push(part);
            Ok(())
        })?;
        return Ok(Storage::Concat(parts));
    }
    if let Some(piece) = piece(c)? {
        return Ok(piece);
    }
    if c.eat("synthetic") {
        return synthetic(c).map(Storage::Synthetic);
    }
    if c.eat("rotated") {
        return rotated(c).map(|rotated| Storage::Rotated(Box::new(rotated)));
    }
    c.expect("none")?;
    Ok(Storage::Absent)
}

/// `(STORAGE, DTYPE, rows(…), columns(…), gain(…))`
fn rotated(c: &mut Cursor<'_>) -> Result<Rotated> {
    c.expect("(")?;
    let part = of_its_own(c)?;
    c.expect(",")?;
    let mut rotated = Rotated {
        parts: vec![part],
        dtype: dtype(c)?,
        rows: None,
        columns: None,
        gain: None,
    };
    while c.eat(",") {
        if c.eat("rows") {
            rotated.rows = Some(turn(c)?);
        } else if c.eat("columns") {
            rotated.columns = Some(turn(c)?);
        } else {
            c.expect("gain")?;
            c.expect("(")?;
            let along_rows = c.eat("rows");
            if !along_rows {
                c.expect("columns")?;
            }
            c.expect(",")?;
            let dtype = dtype(c)?;
            c.expect(",")?;
            let part = of_its_own(c)?;
            let unit_offset = c.eat(",");
            if unit_offset {
                c.expect("unit_offset")?;
            }
            c.expect(")")?;
            rotated.parts.truncate(1);
            rotated.parts.push(part);
            rotated.gain = Some(Gain {
                dtype,
                along_rows,
                unit_offset,
            });
        }
    }
    c.expect(")")?;
    Ok(rotated)
}

/// A part of a file, bytes, or a random matrix.
fn of_its_own(c: &mut Cursor<'_>) -> Result<Storage> {
    let at = c.position();
    match piece(c)? {
        Some(piece) => Ok(piece),
        None if c.eat("synthetic") => synthetic(c).map(Storage::Synthetic),
        None => Err(c.error_at(at, "expected file(…), hex\"…\" or synthetic(…)")),
    }
}

fn dtype(c: &mut Cursor<'_>) -> Result<DType> {
    let at = c.position();
    let word = c.word();
    let known = word.parse();
    known.map_err(|_| c.error_at(at, format!("`{word}` is no element type")))
}

/// `(block=64, seed=7, repeat=64)`
fn turn(c: &mut Cursor<'_>) -> Result<Turn> {
    c.expect("(")?;
    c.expect("block")?;
    c.expect("=")?;
    let block = c.integer()?;
    c.expect(",")?;
    c.expect("seed")?;
    c.expect("=")?;
    let seed = c.integer()?;
    let mut repeat = None;
    if c.eat(",") {
        c.expect("repeat")?;
        c.expect("=")?;
        repeat = Some(c.integer()?);
    }
    c.expect(")")?;
    Ok(Turn {
        block,
        seed,
        repeat,
    })
}

/// A part of a file, or bytes.
fn piece(c: &mut Cursor<'_>) -> Result<Option<Storage>> {
    for (word, encoding) in [("file", Encoding::Raw), ("varint", Encoding::Varint)] {
        if c.eat(word) {
            c.expect("(")?;
            let path: Arc<str> = c.name()?.into();
            c.expect(",")?;
            let offset = c.offset()?;
            c.expect(",")?;
            let len = c.offset()?;
            c.expect(")")?;
            return Ok(Some(Storage::File {
                path,
                offset,
                len,
                encoding,
            }));
        }
    }
    if c.eat("hex") {
        let at = c.position();
        let digits = c.string()?;
        let nibble = |b: u8| (b as char).to_digit(16).map(|d| d as u8);
        let pairs: Option<Vec<u8>> = digits
            .chunks(2)
            .map(|pair| match pair {
                [high, low] => Some(nibble(*high)? * 16 + nibble(*low)?),
                _ => None,
            })
            .collect();
        let bytes = pairs.ok_or_else(|| c.error_at(at, "expected pairs of hex digits"))?;
        return Ok(Some(Storage::Inline(bytes)));
    }
    Ok(None)
}

fn synthetic(c: &mut Cursor<'_>) -> Result<Synthetic> {
    let mut s = Synthetic {
        seed: 0,
        power: 1.0,
        rank: 32,
        scale: 0.02,
        outliers: 0.0,
    };
    c.list("(", ")", |c| {
        let at = c.position();
        let key = c.word().to_string();
        c.expect("=")?;
        if key == "seed" {
            s.seed = c.integer()?;
            return Ok(());
        }
        if key == "rank" {
            s.rank = c.integer()?;
            return Ok(());
        }
        let value = c.number().parse::<f64>().ok().filter(|x| x.is_finite());
        let value = value.ok_or_else(|| c.error_at(at, "expected a number"))?;
        match key.as_str() {
            "power" => s.power = value,
            "scale" => s.scale = value,
            "outliers" => s.outliers = value,
            _ => return Err(c.error_at(at, "expected seed, power, rank, scale or outliers")),
        }
        Ok(())
    })?;
    Ok(s)
}
