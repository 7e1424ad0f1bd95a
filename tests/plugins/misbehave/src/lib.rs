//! A plugin whose passes do what they must not.

mod misbehave;

hlrc_pass::plugin!(misbehave::ENTRY, misbehave::rewrite::ENTRY);
