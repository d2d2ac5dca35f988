#!/bin/sh
# Four ways on from zoo:rope (trained at 512 bytes), 500 steps of 2,048 bytes each; then all scored.
# Stop it and start it again: training goes on from its last saved step. About 500 s of one free core for each
# of pi and yarn, 250 s for pose, 150 s for drope; a minute for the scores.
set -e
go_on() { # name, --extend, length, sequences a step
    [ -f "ckpt/$1/config.json" ] || kerple-eval train --from zoo:rope --extend "$2" --task sotu --length "$3" \
        --batch "$4" --steps 500 --lr 5e-4 --warmup 20 --threads 1 --out "ckpt/$1"
}
go_on pi linear,factor=4 2048 1
go_on yarn yarn,factor=4 2048 1
go_on pose linear,factor=4,pose=2048 512 4
go_on drope nope 512 4
kerple-eval run rope=zoo:rope pi-untrained=zoo:rope,extend=linear,factor=4 \
    yarn-untrained=zoo:rope,extend=yarn,factor=4 pi=native:ckpt/pi yarn=native:ckpt/yarn \
    pose=native:ckpt/pose drope=native:ckpt/drope --task sotu --protocol aligned:k=256 --documents 8 \
    --max-tokens 2049 --length 512,2048 --device cpu --out runs/continued
