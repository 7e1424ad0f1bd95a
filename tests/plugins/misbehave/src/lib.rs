//! A plugin whose passes do what they must not, and one that says what it is told.

mod broken;
mod listen;
mod misbehave;

hlrc_pass::plugin!(
    misbehave::ENTRY,
    misbehave::rewrite::ENTRY,
    listen::ENTRY,
    broken::ENTRY;
    terms: &broken::Broken
);
