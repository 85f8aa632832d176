//! See DESIGN §9.
