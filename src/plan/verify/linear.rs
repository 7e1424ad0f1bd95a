//! Linear kernels: packs as the variant reads them, rows as it reads and writes them.

use super::Faults;
use super::extents::Checked;
use crate::plan::kernels;
use crate::plan::pack::sizes::{CHUNK, groups, row_tile_bytes, trellis_units, u_step_bytes};

/// The sections of the base term of `tiles` row tiles.
pub(super) fn base(c: &Checked<'_>, tiles: u64, cols: u64, faults: &mut Faults) {
    let (format, bits) = (c.variant.define("FORMAT"), c.variant.define("BITS"));
    if format == 5 {
        return;
    }
    c.needs("q", faults);
    if format == 4 {
        c.needs("scales", faults);
        c.needs("zeros", faults);
        c.holds("scales", tiles, faults);
        c.holds("zeros", trellis_units(cols).saturating_mul(16), faults);
        // At least a bit per weight.
        c.holds(
            "q",
            tiles.saturating_mul(cols.div_ceil(16)).saturating_mul(32),
            faults,
        );
        return;
    }
    c.holds(
        "q",
        tiles.saturating_mul(row_tile_bytes(format, bits, cols)),
        faults,
    );
    if format == 0 {
        let groups = groups(cols, c.variant.define("GROUP"));
        c.needs("scales", faults);
        c.holds(
            "scales",
            tiles.saturating_mul(groups).saturating_mul(16),
            faults,
        );
        if c.define("ZEROS") == 1 {
            c.needs("zeros", faults);
            let each = if bits == 8 { 16 } else { 8 };
            c.holds(
                "zeros",
                tiles.saturating_mul(groups).saturating_mul(each),
                faults,
            );
        }
    }
}

pub(super) fn check(c: &Checked<'_>, faults: &mut Faults) {
    let (rows, cols, tiles) = (c.int("rows"), c.int("cols"), c.int("tiles"));
    if rows != tiles.saturating_mul(16) || rows == 0 || cols == 0 {
        faults.add(
            c.at,
            format!("{rows} rows are not those of {tiles} tiles, or there are none"),
        );
        return;
    }
    let prefill = c.variant.kernel == "linear_prefill";
    let (experts, top_k) = (c.define("EXPERTS"), c.int("top_k"));
    let rows_of_grid = u64::from(c.step.grid[1]);
    let tokens = match (prefill, experts) {
        (true, _) => u64::from(c.program.tokens),
        (false, 0) => c.define("M"),
        (false, 1) => rows_of_grid / top_k.max(1),
        (false, _) => rows_of_grid,
    };
    let slots = match experts {
        0 => tokens,
        _ => tokens.saturating_mul(top_k),
    };
    let (x_rows, y_rows) = match (prefill, experts) {
        (true, _) => prefill_rows(c, faults),
        (false, 0) => (tokens, tokens),
        (false, 1) => (tokens, slots),
        (false, _) => (slots, tokens),
    };
    if !prefill {
        grid(c, experts, top_k, faults);
        if experts > 0 {
            for name in ["ids", "weights"] {
                c.needs(name, faults);
                c.holds(name, slots, faults);
            }
        }
    }
    // Of many tokens, all experts are one launch.
    let all = match (prefill, experts) {
        (true, 1..) => tiles.saturating_mul(u64::from(c.step.grid[2])),
        _ => tiles,
    };
    base(c, all, cols, faults);
    for (define, name) in [
        ("XSCALE", "xscale"),
        ("BIAS", "bias"),
        ("RESIDUAL", "residual"),
    ] {
        if c.define(define) == 1 {
            c.needs(name, faults);
        }
    }
    c.holds("xscale", cols, faults);
    c.holds("bias", all.saturating_mul(16), faults);
    if c.define("LOWRANK") == 1 {
        low_rank(c, all, slots, faults);
    }
    if c.define("SPARSE") == 1 {
        c.needs("s_offsets", faults);
        c.holds(
            "s_offsets",
            all.saturating_mul(cols.div_ceil(CHUNK)).saturating_add(1),
            faults,
        );
    }
    if matches!(c.variant.define("XIN"), 1 | 2) {
        c.needs("gain", faults);
        c.holds("gain", cols, faults);
        c.holds("beta", cols, faults);
    }
    let gated = c.define("GLU") == 1;
    if gated && !tiles.is_multiple_of(2) {
        faults.add(
            c.at,
            format!("{tiles} row tiles can't be gates and what they gate"),
        );
    }
    let width = if gated { rows / 2 } else { rows };
    let terms = c.define("LOWRANK") == 1 || c.define("SPARSE") == 1;
    if c.define("XIN") == 3 {
        let padded = cols.next_multiple_of(64);
        for (name, each) in [("xq", 1), ("xs", 32), ("xsum", 32)] {
            c.needs(name, faults);
            c.rows_of(name, x_rows, padded / each, padded / each, faults);
        }
    }
    let rotated = c.define("ROTATED");
    if rotated > 0 {
        if c.define("XIN") == 0 {
            c.needs("xr", faults);
        }
        c.rows_of("xr", x_rows, c.int("ldxr"), cols, faults);
    }
    if rotated == 2 {
        c.needs("y_terms", faults);
        c.rows_of("y_terms", y_rows, c.int("ldt"), width, faults);
    }
    if c.define("XIN") != 3 || terms {
        c.needs("x", faults);
    }
    c.needs("y", faults);
    c.rows_of("x", x_rows, c.int("ldx"), cols, faults);
    c.rows_of("y", y_rows, c.int("ldy"), width, faults);
    c.rows_of("residual", y_rows, c.int("ldr"), width, faults);
    let [x, y, _] = c.step.grid.map(u64::from);
    let covered = |by: u64| y.saturating_mul(by) >= tokens;
    if prefill
        && (x.saturating_mul(kernels::PREFILL_TILES) < tiles
            || !covered(kernels::prefill_tokens(c.variant)))
    {
        faults.add(
            c.at,
            format!("{x} × {y} blocks do not cover {tiles} row tiles and {tokens} tokens"),
        );
    }
}

/// Rows of x, and of what is made of it, in a launch of many tokens; checks what says which rows an
/// expert has.
pub(super) fn prefill_rows(c: &Checked<'_>, faults: &mut Faults) -> (u64, u64) {
    let (tokens, top_k) = (u64::from(c.program.tokens), c.int("top_k"));
    let (slots, z) = (tokens.saturating_mul(top_k), u64::from(c.step.grid[2]));
    match c.define("EXPERTS") {
        0 => {
            c.needs("scalars", faults);
            if z != 1 {
                faults.add(c.at, format!("{z} blocks along z, without experts"));
            }
            (tokens, tokens)
        }
        kind => {
            for name in ["slots", "starts"] {
                c.needs(name, faults);
            }
            c.holds("slots", slots, faults);
            c.holds("starts", z.saturating_add(1), faults);
            if c.define("LOWRANK") == 1 || c.variant.kernel == "low_rank_inner" {
                c.needs("v_index", faults);
                c.holds("v_index", z.saturating_add(1), faults);
            }
            if c.define("RESIDUAL") == 1 {
                faults.add(c.at, "a residual is added to each of a token's experts");
            }
            (if kind == 1 { tokens } else { slots }, slots)
        }
    }
}

/// The shape of a decode launch, and what its blocks meet through.
fn grid(c: &Checked<'_>, experts: u64, top_k: u64, faults: &mut Faults) {
    let [x, y, z] = c.step.grid.map(u64::from);
    let together = c.define("LOWRANK") == 1 || c.define("SPLIT") == 1;
    if z != 1 || (experts == 0 && y != 1) || (experts == 1 && top_k > 0 && !y.is_multiple_of(top_k))
    {
        faults.add(
            c.at,
            format!("a grid of {x} × {y} × {z} blocks is not one of tokens and experts"),
        );
    }
    let m = match experts {
        1 => 1,
        2 => top_k,
        _ => c.define("M"),
    };
    if c.define("M") != m {
        faults.add(
            c.at,
            format!("M={} where {m} rows of x meet", c.define("M")),
        );
    }
    if together && x.saturating_mul(y) > u64::from(c.plan.target.sms) {
        faults.add(
            c.at,
            format!(
                "{x} × {y} blocks wait for one another on {} multiprocessors",
                c.plan.target.sms
            ),
        );
    }
    if together {
        c.needs("counter", faults);
        c.holds("counter", (2 + x).saturating_mul(y), faults);
    }
}

fn low_rank(c: &Checked<'_>, tiles: u64, slots: u64, faults: &mut Faults) {
    let rank = c.int("rank");
    for name in ["v", "v_tiles", "u", "u_tiles", "u_index", "h"] {
        c.needs(name, faults);
    }
    if c.define("VFORMAT") <= 8 {
        c.needs("v_scales", faults);
    }
    if c.define("UFORMAT") <= 8 {
        c.needs("u_scales", faults);
    }
    let parts = if c.variant.kernel == "fused_linear" {
        8
    } else {
        1
    };
    c.holds(
        "h",
        slots.saturating_mul(rank).saturating_mul(parts),
        faults,
    );
    c.holds("u_index", tiles.saturating_add(1), faults);
    let steps = c.elements("u").unwrap_or(0) / u_step_bytes(c.variant.define("UFORMAT")).max(1);
    let entries = c.elements("u_tiles").unwrap_or(0) / 4;
    if entries > steps {
        faults.add(
            c.at,
            format!("argument `u_tiles`: {entries} entries for {steps} steps of U"),
        );
    }
    if !rank.is_multiple_of(16) {
        faults.add(c.at, format!("a rank of {rank}, which is not padded to 16"));
    }
}
