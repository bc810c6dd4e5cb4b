//! The daemon: engines that stay, callers that are known and judged, and a log of who did what.
