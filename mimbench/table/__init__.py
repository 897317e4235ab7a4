"""Tables: their files, the papers' figures, cells computed from runs, verdicts. No torch, no mmengine."""
