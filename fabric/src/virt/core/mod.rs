//! The core of virtual verbs: addresses and verbs structs.
