//! What every matrix pass promises: the term and the residual add up, bounds hold, runs repeat.

use hlrc::numeric::matrix::norm2;
use hlrc::numeric::{Group, ScaleMethod, Scheme};
use hlrc::pass::pipeline::Pipeline;
use hlrc::pass::terms::TermData;
use hlrc::pass::{
    Access, MatrixPass, Pass, Peel, Peeled, Place, Quantizer, Remark, Stored, find, passes,
};
use serde_json::Map;

fn matrix_passes() -> Vec<(&'static str, Box<dyn MatrixPass>)> {
    let built = passes().into_iter().filter_map(|entry| {
        match (entry.build)(Map::new()).expect("defaults that work") {
            Pass::Matrix(pass) => Some((entry.name, pass)),
            Pass::Module(_) => None,
        }
    });
    built.collect()
}

/// Low rank, noise and a few large entries; values that bf16 holds exactly.
fn weights(rows: usize, cols: usize) -> Vec<f32> {
    let mut state = 7u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let left: Vec<f32> = (0..rows).map(|_| next()).collect();
    let right: Vec<f32> = (0..cols).map(|_| next()).collect();
    let mut out = Vec::with_capacity(rows * cols);
    for l in &left {
        for r in &right {
            let large = if next() > 0.995 { 5.0 } else { 0.0 };
            out.push(f32::from_bits(
                (l * r + 0.3 * next() + large).to_bits() & 0xffff_0000,
            ));
        }
    }
    out
}

fn peel(pass: &dyn MatrixPass, residual: &mut [f32], rows: usize, cols: usize) -> Peeled {
    let mut remarks: Vec<Remark> = Vec::new();
    let mut rotation = None;
    let mut peel = Peel {
        site: "w",
        rows,
        cols,
        residual,
        seed: 3,
        next: Some(Quantizer {
            scheme: Scheme::symmetric(4),
            group: Group::Size(32),
            method: ScaleMethod::AbsMax,
            feedback: false,
        }),
        quantized_later: true,
        moments: None,
        rotation: &mut rotation,
        rotation_seed: 0,
        earlier: Vec::new(),
        remarks: &mut remarks,
    };
    let mut peeled = pass.peel(&mut peel).expect("a pass that works");
    if let Some(rotation) = rotation
        && let Some(term) = peeled.term.take()
    {
        // As the manager does: the term is of the rotated matrix, the residual comes back.
        rotation.undo(residual, cols);
        peeled.term = Some(TermData::Rotated(rotation, Box::new(term)));
    }
    assert!(peeled.term.is_some() || !peeled.note.is_empty() || !remarks.is_empty());
    peeled
}

const SHAPES: [(usize, usize); 5] = [(64, 172), (172, 64), (33, 7), (2, 300), (96, 96)];

#[test]
fn term_and_residual_add_up() {
    for (name, pass) in matrix_passes() {
        for (rows, cols) in SHAPES {
            let w = weights(rows, cols);
            let mut sum = w.clone();
            let Some(term) = peel(pass.as_ref(), &mut sum, rows, cols).term else {
                let turned = name == "rotate";
                assert!(turned || sum == w, "{name}: no term, so nothing may change");
                continue;
            };
            term.add_rows(0..rows, &mut sum).expect("decodes");
            let error: Vec<f32> = sum.iter().zip(&w).map(|(a, b)| a - b).collect();
            let relative = (norm2(&error) / norm2(&w)).sqrt();
            assert!(
                relative < 1e-6,
                "{name} on {rows}x{cols}: off by {relative:e}"
            );
            let (bytes, bound) = (term.bytes(), pass.term_bytes(rows as u64, cols as u64));
            assert!(
                bytes <= bound,
                "{name} on {rows}x{cols}: {bytes} bytes, bound {bound}"
            );
        }
    }
}

#[test]
fn runs_repeat() {
    let (rows, cols) = (600, 520);
    let w = weights(rows, cols);
    for (name, pass) in matrix_passes() {
        let (mut first, mut second) = (w.clone(), w.clone());
        peel(pass.as_ref(), &mut first, rows, cols);
        peel(pass.as_ref(), &mut second, rows, cols);
        assert!(first == second, "{name}: two runs differ");
    }
}

#[test]
fn rows_stand_alone_where_the_pass_says_so() {
    let (rows, cols) = (40, 172);
    let w = weights(rows, cols);
    for (name, pass) in matrix_passes() {
        if pass.access() != Access::Rows {
            continue;
        }
        let (mut whole, mut tiles) = (w.clone(), w.clone());
        let all = peel(pass.as_ref(), &mut whole, rows, cols).term;
        let (head, tail) = tiles.split_at_mut(16 * cols);
        let parts: Vec<_> = [(head, 16), (tail, rows - 16)]
            .into_iter()
            .filter_map(|(tile, rows)| peel(pass.as_ref(), tile, rows, cols).term)
            .collect();
        assert!(whole == tiles, "{name}: tiles leave another residual");
        let stored = |tiles: Vec<TermData>| {
            let parts = TermData::tiles_into_parts(tiles).expect("tiles of one term");
            parts.map(|(spec, tensors)| {
                let data = tensors.into_iter().map(|t| (t.shape, t.pieces.concat()));
                (spec, data.collect::<Vec<_>>())
            })
        };
        assert!(
            stored(all.into_iter().collect()) == stored(parts),
            "{name}: tiles make another term"
        );
    }
}

#[test]
fn stored_rows_give_the_same_term() {
    let (rows, cols) = (40, 172);
    let w = weights(rows, cols);
    let bf16: Vec<u8> = w
        .iter()
        .flat_map(|x| x.to_le_bytes()[2..].to_vec())
        .collect();
    let f32s: Vec<u8> = w.iter().flat_map(|x| x.to_le_bytes()).collect();
    for (name, pass) in matrix_passes() {
        let sources = [
            Stored::Bf16 {
                bytes: &bf16,
                rows,
                cols,
            },
            Stored::F32 {
                bytes: &f32s,
                rows,
                cols,
            },
        ];
        for source in sources {
            let place = Place { site: "w", seed: 0 };
            let Some(stored) = pass.peel_stored(source, place) else {
                continue;
            };
            let stored = stored.expect("a pass that works");
            let mut residual = w.clone();
            let term = peel(pass.as_ref(), &mut residual, rows, cols).term;
            let (mut ours, mut theirs) = (vec![0.0; w.len()], vec![0.0; w.len()]);
            stored.term.add_rows(0..rows, &mut ours).expect("decodes");
            let term = term.expect("a term");
            term.add_rows(0..rows, &mut theirs).expect("decodes");
            assert!(ours == theirs, "{name}: stored rows give another term");
            let close = |a: f64, b: f64| (a - b).abs() <= 1e-9 * b;
            assert!(close(stored.weight_squares, norm2(&w)), "{name}");
            assert!(close(stored.residual_squares, norm2(&residual)), "{name}");
        }
    }
}

#[test]
fn extreme_options_are_no_panic() {
    let extremes = [
        "lowrank{rank=4294967295 oversampling=4096 power_iterations=16}",
        "lowrank{rank=1 depth=16 factors=int4}",
        "lowrank{energy=0}",
        "lowrank{energy=1 depth=3 factors=f32}",
        "lowrank{energy=1 max_rank=4294967295 method=randomized oversampling=0}",
        "multilevel{levels=16 rank=4294967295}",
        "multilevel{bpw=1e300 factors=int4}",
        "multilevel{bpw=0}",
        "multilevel{energy=0}",
        "multilevel{energy=1 levels=16 factors=int4}",
        "multilevel{energy=0.5 max_rank=4294967295}",
        "outlier{density=0}",
        "outlier{density=1}",
        "outlier{count=18446744073709551615}",
        "outlier{columns count=18446744073709551615 by=magnitude}",
        "outlier{columns density=1}",
        "outlier{sigma=0}",
        "outlier{sigma=1e308}",
        "int8{group=column asymmetric scale=lsq}",
        "int2{group=row asymmetric=false}",
    ];
    let shapes = [(1, 1), (1, 70), (70, 1), (2, 2), (40, 33)];
    for text in extremes {
        let pipeline = Pipeline::parse(text).expect("a pipeline");
        let call = pipeline.calls()[0];
        let entry = find(&call.name).expect("a pass");
        let Ok(Pass::Matrix(pass)) = (entry.build)(call.options_json()) else {
            panic!("{text} is refused");
        };
        for (rows, cols) in shapes {
            for scale in [0.0, 1e-30, 1.0, 1e4] {
                let mut residual = weights(rows, cols);
                residual.iter_mut().for_each(|x| *x *= scale);
                let term = peel(pass.as_ref(), &mut residual, rows, cols).term;
                assert!(
                    residual.iter().all(|x| x.is_finite()),
                    "{text} on {rows}x{cols}"
                );
                let bytes = term.map_or(0, |t| t.bytes());
                let bound = pass.term_bytes(rows as u64, cols as u64);
                assert!(bytes <= bound, "{text} on {rows}x{cols}: {bytes} > {bound}");
            }
        }
        pass.workspace_bytes(u64::MAX, u64::MAX);
        pass.term_bytes(u64::MAX, u64::MAX);
        assert!(pass.nanos(u64::MAX, u64::MAX) >= 0.0);
    }
}
