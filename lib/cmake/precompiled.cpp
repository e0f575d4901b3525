// Carries the precompiled header that every layer but core reuses.
