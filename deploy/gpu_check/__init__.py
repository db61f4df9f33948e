"""Checks camlens on a machine with a card. `deploy/gpu-check` runs it.

    __main__      the command line; the order of the checks
    setting       what a run is about: options, folders, the environment of camlens
    libraries     where this Python keeps libtorch and CUDA's libraries
    program       camlens as a process: servers, benches, explained pictures
    card          memory and utilisation of the card
    report        findings, the JSON document, the table
    environment, conformance, speed, streams, overlap, memory, limits      the checks, in order
    distances     between maps, and which are allowed
    fixtures      the committed small networks and their references, sent over gRPC
    models        networks as folders that camlens serves
    networks, definition, peers      what needs PyTorch, each a process of its own
    pack          the archive for a machine without the repository
"""
