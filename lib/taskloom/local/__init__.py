"""The local schedulers' one code base: run state, loop, callbacks, pools."""
