"""Tables: their files, the papers' figures, how runs become cells, verdicts. No torch, no mmengine."""
