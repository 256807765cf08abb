//! Real clusters for the scenarios.
