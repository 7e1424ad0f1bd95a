//! Command lines and pipelines that make no sense.

use super::files::text;
use super::{Case, args, fixture};
use std::path::Path;

fn with(rest: &[&str]) -> Vec<String> {
    let mut all = vec![text(fixture("stories260K.onnx"))];
    all.extend(args(rest));
    all
}

/// More scopes than any pipeline has.
const NESTED: &str = "head(head(head(head(head(head(head(head(head(head(head(head(head(head(head(head(head(head(head(\
head(head(head(head(head(head(head(head(head(head(head(head(head(head(head(head(head(head(head(head(head(head(";

macro_rules! cases {
    ($($name:literal [$($arg:expr),*] => $exit:literal $says:expr;)*) => {
        &[$(Case { name: $name, make: |_: &Path| with(&[$($arg),*]), exit: $exit, says: &$says }),*]
    };
}

pub const CASES: &[Case] = cases! {
    "unknown pass" ["-p", "lowrnk"] => 2 ["column 1", "did you mean `lowrank`"];
    "unknown pass in a scope" ["-p", "int8,head(lowrnk)"] => 2 ["column 11", "lowrank"];
    "option typo" ["-p", "lowrank{rnk=3}"] => 2 ["column 9", "did you mean `rank`"];
    "option of the wrong type" ["-p", "lowrank{rank=big}"] => 2 ["column 9", "rank"];
    "option out of range" ["-p", "lowrank{rank=-4}"] => 2 ["rank"];
    "group that does not exist" ["-p", "int4{group=33}"] => 2 ["group"];
    "density above one" ["-p", "outlier{density=300%}"] => 2 ["density"];
    "option twice" ["-p", "lowrank{rank=3 rank=4}"] => 2 ["twice", "column 16"];
    "braces not closed" ["-p", "lowrank{rank=3"] => 2 ["not closed", "column 8"];
    "empty pass" ["-p", "lowrank,,int4"] => 2 ["column 9"];
    "options in parentheses" ["-p", "lowrank(rank=3)"] => 2 ["braces"];
    "scope that selects nothing" ["-p", "no_such_tensor(int4)"] => 2 ["no_such_tensor", "selects nothing"];
    "layers that do not exist" ["-p", "layers[40-50](int4)"] => 2 ["layers[40-50]", "0 to 4"];
    "override that selects nothing" ["-p", "int4", "-t", "q_porj=int8"] => 2 ["q_porj"];
    "expression that is none" ["-p", "re:[a-(int4)"] => 2 ["regular expression"];
    "expression that explodes" ["-p", "re:\"((a{1,999}){1,999}){1,999}\"(int4)"] => 2 ["regular expression"];
    "unknown preset" ["-p", "@hl4_n"] => 2 ["did you mean `hl4_"];
    "nesting without end" ["-p", NESTED] => 2 ["nested more than"];
    "unknown flag" ["-p", "int4", "--seeed", "3"] => 2 ["--seed"];
    "no threads" ["-p", "int4", "--threads", "0"] => 2 ["--threads"];
    "memory in no unit" ["-p", "int4", "--mem-limit", "4 apples"] => 2 ["4GiB"];
    "memory too small" ["-p", "int4", "--mem-limit", "64KiB"] => 4 ["64.0 KiB"];
    "unquoted pipeline" ["-p", "lowrankrank=3", "lowranksketch=4"] => 2 ["quote"];
    "stop after a pass that is not there" ["-p", "int4", "--stop-after", "lowrank"] => 2 ["lowrank"];
    "remarks filter that is none" ["-p", "int4", "--remarks-filter", "("] => 2 ["--remarks-filter"];
};
