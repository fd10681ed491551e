"""Results of an earlier commit, kept: proof that a change of the code changes no run id and no number.

    text/, sweeps/      a small corpus, and sweeps over it in JSON that train 61 tiny runs
    recorded.json.gz    what they trained to in commit 8866e8a, and on which stack: see `__main__`
    ids.json            configs of those runs and of others, with the names that the commit gave them
    store/              a store that it wrote: runs that finished, one that diverged, one stopped by SIGTERM at step 105
                        of 200, two that were only planned; process ids and hosts are made up
    continued.json      what that store's sweep comes to where nothing stops it

None of it is ever recorded again by other code. The last three are tested by `tests/test_goldens.py`.
"""
